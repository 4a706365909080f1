import {DatabaseSync} from 'node:sqlite'
import {introspect, type TableSpec} from '../src/source/introspect.ts'
import type {Database} from './postgres.ts'
import {run} from './program.ts'

/** What an administrator would type: `sqlite3 -csv | psql \copy`, table by table, into tables with a primary key. */
export async function csvPipe(file: string, {url}: Pick<Database, 'url'>): Promise<number> {
  using db = new DatabaseSync(file, {readOnly: true})
  const {tables} = introspect(db)
  const ddl = tables
    .map(table => `create table ${quote(table.name)} (${definitions(table).join(', ')});`)
    .join('\n')
  const copies = tables.map(
    ({name}) =>
      `sqlite3 -csv "$FILE" ${shell(`select * from ${quote(name)}`)} | psql "$URL" -q -v ON_ERROR_STOP=1 -c ${shell(`\\copy ${quote(name)} from stdin (format csv)`)}`,
  )
  const script = ['set -e', `psql "$URL" -q -v ON_ERROR_STOP=1 -c ${shell(ddl)}`, ...copies].join('\n')
  const {ms} = await run('sh', ['-c', script], {env: {PATH: process.env['PATH'], FILE: file, URL: url}})
  return ms
}

/** Text wherever a value could be anything else: no check of JSON, which makes the reference faster, not slower. */
function definitions({columns, key}: TableSpec): string[] {
  const types = columns.map(
    ({name, declared}) => `${quote(name)} ${/INT/i.test(declared) ? 'bigint' : 'text'}`,
  )
  return key.length === 0 ? types : [...types, `primary key (${key.map(quote).join(', ')})`]
}

function quote(name: string): string {
  return `"${name.replaceAll('"', '""')}"`
}

function shell(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`
}
