import {DatabaseSync} from 'node:sqlite'

/** How two SQLite files compare. Equal when `differences` is empty. */
export type Comparison = {
  readonly tables: number
  readonly rows: number
  /** What is not the same, a sentence each. */
  readonly differences: readonly string[]
}

type Place = 'main' | 'other'

const fileSettings = [
  'encoding',
  'page_size',
  'user_version',
  'application_id',
  'auto_vacuum',
  'journal_mode',
] as const

/**
 * Compares two files by SQLite itself: both attached to one connection, every row of every table held against the
 * other's by value and storage class. Nothing that captures, digests or restores has a part in it, so that it can prove
 * them. Where a row stands in its table (the rowid that nobody sees) does not count.
 */
export function compareContent(file: string, otherFile: string): Comparison {
  using db = new DatabaseSync(file, {readOnly: true, enableDoubleQuotedStringLiterals: true})
  db.prepare('attach ? as other').run(otherFile)
  // Of one instant each, whoever else may be writing.
  db.exec('begin')
  const differences = fileSettings.flatMap(name => {
    const [ours, theirs] = [setting(db, 'main', name), setting(db, 'other', name)]
    return ours === theirs ? [] : [`${name} is ${ours} and ${theirs}`]
  })
  const schema = (place: Place) => `select type, name, tbl_name, sql from ${place}.sqlite_schema
    where sql is not null and tbl_name not like 'sqlite_stat%'`
  for (const {name} of db.prepare(eitherWay(schema('main'), schema('other'))).all())
    differences.push(`${String(name)} is declared differently`)

  let rows = 0
  const tables = tablesOf(db, 'main')
  for (const table of tables) {
    rows += count(db, `select count(*) from main.${quoted(table)}`)
    const contents = (['main', 'other'] as const).map(place => contentOf(db, place, table))
    const [ours, theirs] = contents
    if (ours === undefined || theirs === undefined) continue // said above: it is not declared there
    const differing = count(db, `select count(*) from (${eitherWay(ours, theirs)})`)
    if (differing > 0) differences.push(`${table}: ${differing} rows are in one file only`)
  }
  return {tables: tables.length, rows, differences}
}

/** A query for what one of two queries yields and the other does not. */
function eitherWay(ours: string, theirs: string): string {
  return `select * from (${ours} except ${theirs}) union all select * from (${theirs} except ${ours})`
}

/**
 * A query for the rows of a table with their storage classes, and how often each comes. Text goes as its bytes: no
 * collation of a column then takes two for one.
 */
function contentOf(db: DatabaseSync, place: Place, table: string): string | undefined {
  const columns = db
    .prepare(`select name from pragma_table_xinfo(?, '${place}') where hidden <> 1 order by name`)
    .all(table)
    .map(({name}) => quoted(String(name)))
  if (columns.length === 0) return undefined
  const terms = columns.flatMap(column => [
    `typeof(${column})`,
    `case typeof(${column}) when 'text' then cast(${column} as blob) else ${column} end`,
  ])
  const names = terms.map((term, i) => `${term} as c${i}`)
  const places = terms.map((_, i) => String(i + 1))
  return `select ${names.join(', ')}, count(*) as n from ${place}.${quoted(table)} group by ${places.join(', ')}`
}

function tablesOf(db: DatabaseSync, place: Place): string[] {
  return db
    .prepare(
      `select name from ${place}.sqlite_schema
       where type = 'table' and rootpage <> 0 and name not like 'sqlite_stat%' order by name`,
    )
    .all()
    .map(({name}) => String(name))
}

function setting(db: DatabaseSync, place: Place, name: (typeof fileSettings)[number]): string {
  return String(Object.values(db.prepare(`pragma ${place}.${name}`).get() ?? {})[0])
}

function count(db: DatabaseSync, sql: string): number {
  return Number(Object.values(db.prepare(sql).get() ?? {})[0])
}

function quoted(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}
