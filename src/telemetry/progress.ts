/** How far a run is, as a person wants to see it. */
export type ProgressView = {
  /** What is under way: `sync acme`. */
  readonly label: string
  readonly table?: string
  /** Absent while there is nothing but waiting. */
  readonly rows?: number
  /** Absent while nobody knows. */
  readonly totalRows?: number
  /** Absent where nobody counts them. */
  readonly bytes?: number
}

/** A progress line. Disposing of it clears the line, however the work ended. */
export type Progress = {
  /** False where nobody sees it: what only it needs need not be found out. */
  readonly isShown: boolean
  update(view: ProgressView): void
  [Symbol.dispose](): void
}

type Terminal = {
  readonly isTTY?: boolean
  readonly columns?: number
  write(text: string): unknown
}

const redrawMs = 100
const eraseLine = '\r\u001b[2K'

/**
 * Draws progress on one line of `terminal`, at most ten times a second; silent where there is no terminal.
 *
 * @param env says what the terminal can show: `TERM`, `LC_ALL`, `LC_CTYPE`, `LANG`.
 * @param now milliseconds of a monotonic clock.
 */
export function progressOn(
  terminal: Terminal,
  env: Readonly<Record<string, string | undefined>>,
  now: () => number = () => performance.now(),
): Progress {
  if (terminal.isTTY !== true || env.TERM === 'dumb')
    return {isShown: false, update: () => undefined, [Symbol.dispose]: () => undefined}
  const isUnicode = /utf-?8/i.test(env.LC_ALL ?? env.LC_CTYPE ?? env.LANG ?? '')
  const startedAt = now()
  let drawnAt = -Infinity
  return {
    isShown: true,
    update(view) {
      const at = now()
      if (at - drawnAt < redrawMs) return
      drawnAt = at
      const line = progressLine(view, {
        elapsedMs: at - startedAt,
        width: columnsOf(terminal) - 1,
        isUnicode,
      })
      terminal.write(eraseLine + line)
    },
    [Symbol.dispose]() {
      if (drawnAt !== -Infinity) terminal.write(eraseLine)
    },
  }
}

/**
 * Adds up what a run says of its tables, several of which may be under way at once. A run that reads a table again, to
 * see what has changed meanwhile, does not go back.
 *
 * @param totalRows of all tables; `undefined` while nobody knows.
 */
export function tally(
  progress: Progress,
  label: string,
  totalRows: number | undefined,
): (table: string, rows: number) => void {
  const most = new Map<string, number>()
  let sum = 0
  return (table, rows) => {
    // Nameless is what a run says of all of them together.
    const before = most.get(table) ?? 0
    if (table !== '' && rows > before) {
      most.set(table, rows)
      sum += rows - before
    }
    progress.update({label, table, rows: sum, ...(totalRows !== undefined && {totalRows})})
  }
}

/** @returns the width of a terminal; 80 for what is none, and for one that does not know (a serial line says 0). */
export function columnsOf({columns = 0}: Pick<Terminal, 'columns'>): number {
  return columns > 0 ? columns : 80
}

export type LineOptions = {readonly elapsedMs: number; readonly width: number; readonly isUnicode: boolean}

const longestBar = 30
const shortestBar = 8

/** One line no wider than `width`: what matters least is left out first, then the label is cut. */
export function progressLine(view: ProgressView, {elapsedMs, width, isUnicode}: LineOptions): string {
  const {rows, totalRows, bytes} = view
  const label = printable(view.label)
  const table = printable(view.table ?? '')
  const seconds = elapsedMs / 1_000
  const share =
    totalRows === undefined ? undefined : totalRows === 0 ? 1 : Math.min((rows ?? 0) / totalRows, 1)
  const counted =
    rows === undefined
      ? ''
      : totalRows === undefined
        ? counts(rows, 'row')
        : `${whole(rows)}/${whole(totalRows)} rows`
  const rate = rows !== undefined && seconds >= 1 ? `${counts(Math.round(rows / seconds), 'row')}/s` : ''
  const percent = share === undefined ? '' : `${Math.floor(share * 100)} %`.padStart(5)
  const optional = [table, counted, bytes === undefined ? '' : size(bytes), rate]

  for (let kept = optional.length; kept >= 0; kept--) {
    const parts = [...optional.slice(0, kept).filter(part => part !== '')]
    const fixed = [label, percent, ...parts].filter(part => part !== '').join('  ')
    const room = width - fixed.length - 2
    if (share !== undefined && room >= shortestBar) {
      const bar = barOf(share, Math.min(room, longestBar), isUnicode)
      return [label, bar, percent, ...parts].join('  ')
    }
    if (fixed.length <= width && (share === undefined || kept === 0)) return fixed
  }
  return label.length <= width ? label : `${label.slice(0, Math.max(width - 1, 0))}${isUnicode ? '…' : '.'}`
}

const eighths = ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉']

function barOf(share: number, width: number, isUnicode: boolean): string {
  if (!isUnicode) {
    const full = Math.floor(share * (width - 2))
    return `[${'#'.repeat(full)}${'-'.repeat(width - 2 - full)}]`
  }
  const filled = Math.floor(share * width * 8)
  const full = Math.floor(filled / 8)
  const part = eighths[filled % 8] ?? ''
  return `${'█'.repeat(full)}${part}${'░'.repeat(width - full - part.length)}`
}

/** A table may be called anything, also what moves the cursor. */
function printable(name: string): string {
  return name.replace(/\p{C}/gu, '?')
}

function whole(number: number): string {
  return number.toLocaleString('en-US')
}

function counts(number: number, noun: string): string {
  return `${whole(number)} ${noun}${number === 1 ? '' : 's'}`
}

function size(bytes: number): string {
  if (bytes < 1_000) return `${bytes} B`
  const [amount, unit] =
    bytes < 1_000_000
      ? [bytes / 1_000, 'kB']
      : bytes < 1_000_000_000
        ? [bytes / 1_000_000, 'MB']
        : [bytes / 1e9, 'GB']
  return `${amount.toFixed(1)} ${unit}`
}
