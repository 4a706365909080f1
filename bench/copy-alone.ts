import {mkdtempSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import type {Pool} from '../src/postgres/sql.ts'
import {CLIENT} from './ours.ts'
import type {Database} from './postgres.ts'
import {run} from './program.ts'

/** What a first load has made, as text files and as statements that make the same tables again. */
export type Ready = Disposable & {
  readonly ddl: string
  readonly tables: readonly {
    readonly name: string
    readonly file: string
    readonly indexes: readonly string[]
  }[]
}

/** Writes a loaded client schema out: every column and every value, the bookkeeping's too. */
export async function makeReady({admin, adminUrl}: Pick<Database, 'admin' | 'adminUrl'>): Promise<Ready> {
  const folder = mkdtempSync(join(tmpdir(), 'owsync-bench-ready-'))
  const [schema, ...tables] = await Promise.all([columnsOf(admin), indexesOf(admin)]).then(
    ([ddl, indexes]) =>
      [
        ddl.map(({definition}) => definition).join('\n'),
        ...ddl.map(({name}) => ({
          name,
          file: join(folder, `${name}.txt`),
          indexes: indexes.filter(index => index.table === name).map(index => index.definition),
        })),
      ] as const,
  )
  const script = tables.map(({name, file}) => `\\copy ${nameOf(name)} to '${file}'`)
  await psql(adminUrl, script)
  return {
    ddl: `create schema ${CLIENT};\n${schema}`,
    tables,
    [Symbol.dispose]: () => {
      rmSync(folder, {recursive: true, force: true})
    },
  }
}

/**
 * COPY of ready text, then the same indexes, built with as much memory as ours: what is left to do when reading,
 * comparing and remembering cost nothing.
 */
export async function copyAlone(
  {ddl, tables}: Ready,
  {adminUrl}: Pick<Database, 'adminUrl'>,
): Promise<number> {
  const loads = tables.flatMap(({name, file, indexes}) => [
    `\\copy ${nameOf(name)} from '${file}'`,
    ...indexes,
  ])
  return await psql(adminUrl, ["set maintenance_work_mem = '256MB'", ddl, ...loads])
}

async function psql(url: string, script: readonly string[]): Promise<number> {
  const args = script.flatMap(statement => ['-c', statement])
  const {ms} = await run('psql', [url, '-q', '-v', 'ON_ERROR_STOP=1', ...args])
  return ms
}

function nameOf(table: string): string {
  return `${CLIENT}."${table.replaceAll('"', '""')}"`
}

function columnsOf(admin: Pool): Promise<{name: string; definition: string}[]> {
  return admin<{name: string; definition: string}>`
    select c.relname as name, format('create table %I.%I (%s);', ${CLIENT}::text, c.relname, string_agg(
      format('%I %s%s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod),
        case a.attcompression when 'l' then ' compression lz4' else '' end,
        case when a.attcollation = '"C"'::regcollation then ' collate "C"' else '' end,
        case when a.attnotnull then ' not null' else '' end,
        ' default ' || pg_get_expr(d.adbin, d.adrelid)), ', ' order by a.attnum))
      || coalesce(string_agg(format(' alter table %I.%I alter %I set storage plain;', ${CLIENT}::text, c.relname, a.attname), '')
        filter (where a.attstorage = 'p' and t.typstorage <> 'p'), '') as definition
    from pg_class c
    join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
    left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = ${CLIENT}::regnamespace and c.relkind = 'r'
    group by c.oid, c.relname order by c.relname`
}

function indexesOf(admin: Pool): Promise<{table: string; definition: string}[]> {
  return admin<{table: string; definition: string}>`
    select c.relname as table, coalesce(
      (select format('alter table %s add %s', n.conrelid::regclass, pg_get_constraintdef(n.oid))
       from pg_constraint n where n.conindid = i.indexrelid and n.contype = 'p'),
      pg_get_indexdef(i.indexrelid)) as definition
    from pg_index i join pg_class c on c.oid = i.indrelid
    where c.relnamespace = ${CLIENT}::regnamespace and c.relkind = 'r'
    order by 1, i.indexrelid`
}
