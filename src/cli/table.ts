/**
 * Rows as aligned columns with headings, for a person. Numbers stand to the right. What a cell says is made printable:
 * names come from files of others.
 */
export function table(headings: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const texts = [headings, ...rows.map(row => row.map(cellText))]
  const widths = headings.map((_, i) => Math.max(...texts.map(row => (row[i] ?? '').length)))
  const isNumber = headings.map((_, i) =>
    rows.some(row => typeof row[i] === 'number' || typeof row[i] === 'bigint'),
  )
  return texts
    .map(row =>
      row
        .map((text, i) =>
          isNumber[i] === true ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0),
        )
        .join('  ')
        .trimEnd(),
    )
    .join('\n')
}

/** `undefined` shows as a dash, an instant as UTC to the second. */
export type Cell = string | number | bigint | boolean | Date | undefined

/** @returns bytes as a person reads them: `48.2 MB`. */
export function sizeText(bytes: number | bigint): string {
  let amount = Number(bytes)
  for (const unit of ['B', 'kB', 'MB', 'GB']) {
    if (amount < 1_000) return unit === 'B' ? `${amount} B` : `${amount.toFixed(1)} ${unit}`
    amount /= 1_000
  }
  return `${amount.toFixed(1)} TB`
}

function cellText(cell: Cell): string {
  if (cell === undefined || cell === '') return '-'
  if (cell instanceof Date) return cell.toISOString().replace('T', ' ').slice(0, 19)
  if (typeof cell === 'boolean') return cell ? 'yes' : 'no'
  return (typeof cell === 'string' ? cell : cell.toLocaleString('en-US')).replace(/\p{C}/gu, '?')
}

/** `1 row`, `2 rows`. */
export function counted(n: number, noun: string): string {
  return `${n} ${noun}${n === 1 ? '' : 's'}`
}
