import {DatabaseSync} from 'node:sqlite'

// A small file with every kind of key, and random changes of it: quick, so that a crash test can have many rounds.

/** A seeded generator of numbers; the same seed does the same. */
export type Chance = {
  /** A whole number from 0 to `n` - 1. */
  below(n: number): number
  pick<T>(values: readonly T[]): T
}

/** The seed of a randomised test: new for each run, or the one given, to repeat a failure. */
export function seedOf(name = 'OWSYNC_SEED'): number {
  const given = Number(process.env[name])
  return Number.isInteger(given) && given > 0 ? given : Math.trunc(Math.random() * 2 ** 31) + 1
}

/** https://en.wikipedia.org/wiki/Xorshift */
export function chanceOf(seed: number): Chance {
  let state = seed | 0 || 1
  const next = () => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) / 2 ** 32
  }
  for (let i = 0; i < 8; i++) next()
  const below = (n: number) => Math.trunc(next() * n)
  return {below, pick: values => values[below(values.length)]!}
}

const ddl = `
  create table chat (id varchar(255) not null primary key, user_id varchar(255), title text, chat json,
    created_at datetime, updated_at bigint, archived boolean, meta json);
  create index chat_user on chat (user_id, updated_at);
  create table message (id text not null, channel_id text, content text, data json, created_at bigint);
  create unique index message_id on message (id);
  create table tag (id varchar(255) not null, user_id varchar(255) not null, name varchar, primary key (id, user_id));
  create table note (body text, n integer);
  create table config (id integer primary key autoincrement, data json not null, version integer);
  create table preference (key text primary key, value) without rowid;
  create table measure (id integer primary key, r real, n numeric, i integer, any_value, b blob);`

/** Makes the file, with some rows in each table. */
export function makeFile(
  file: string,
  chance: Chance,
  {journal = 'delete', rows = 120}: {readonly journal?: 'delete' | 'wal'; readonly rows?: number} = {},
): void {
  using db = open(file)
  db.exec(`pragma journal_mode = ${journal}`)
  db.exec(ddl)
  db.exec('begin')
  for (let i = 0; i < rows; i++) for (const insert of inserts) insert(db, chance)
  db.exec('commit')
}

/** Changes the file by a few transactions, as an app does: rows come, change, move and go; now and then a column comes. */
export function mutate(file: string, chance: Chance, transactions = 3): void {
  mutateRows(file, chance, transactions)
  if (chance.below(15) === 0) addColumn(file, chance)
  // Whatever was taken back or changed nothing: something has changed.
  using db = open(file)
  chance.pick(inserts)(db, chance)
}

/** Adds a column, as an app's upgrade does. */
export function addColumn(file: string, chance: Chance): void {
  using db = open(file)
  db.exec(
    `alter table chat add column extra_${chance.below(1_000_000)} ${chance.pick(['text', 'integer', 'json'])}`,
  )
}

/** The same as {@link mutate}, and the schema stays. */
export function mutateRows(file: string, chance: Chance, transactions = 3): void {
  using db = open(file)
  for (let i = 0; i < transactions; i++) transact(db, chance)
  if (chance.below(12) === 0) db.exec('vacuum')
}

/** One transaction of an app at work, which has no time to tidy up. */
export function mutateOnce(file: string, chance: Chance): void {
  using db = open(file)
  transact(db, chance)
}

function transact(db: DatabaseSync, chance: Chance): void {
  db.exec('begin immediate')
  for (let n = 1 + chance.below(6); n > 0; n--) chance.pick(changes)(db, chance)
  // Now and then an app changes its mind.
  db.exec(chance.below(8) === 0 ? 'rollback' : 'commit')
}

function open(file: string): DatabaseSync {
  const db = new DatabaseSync(file, {timeout: 5_000, enableForeignKeyConstraints: false})
  db.exec('pragma synchronous = off') // its machine does not stop
  return db
}

type Step = (db: DatabaseSync, chance: Chance) => void

let counter = 0
const fresh = (prefix: string) => `${prefix}-${Date.now().toString(36)}-${(++counter).toString(36)}`
const wordsOf = (chance: Chance, bytes: number) =>
  Array.from({length: Math.ceil(bytes / 9)}, () => chance.below(2 ** 31).toString(36)).join(' ')
/** Long texts are pieces of this one: to make each word anew would be most of what a change costs. */
const manyWords = wordsOf(chanceOf(1), 400_000)
const words = (chance: Chance, bytes: number) => {
  if (bytes < 1_000) return wordsOf(chance, bytes)
  const length = (7 * bytes) / 9
  const at = chance.below(manyWords.length - length)
  return manyWords.slice(at, at + length)
}
const text = (chance: Chance) => words(chance, chance.pick([5, 40, 40, 300, 5_000, 60_000]))

const inserts: readonly Step[] = [
  (db, chance) => {
    db.prepare(
      'insert into chat (id, user_id, title, chat, created_at, updated_at, archived, meta) values (?,?,?,?,?,?,?,?)',
    ).run(
      fresh('chat'),
      `user-${chance.below(9)}`,
      words(chance, 20),
      JSON.stringify({history: text(chance)}),
      1_768_000_000 + chance.below(1_000_000),
      chance.pick([null, 0, 1_768_000_000]), // hardly ever moves: nothing may rely on it
      chance.below(2),
      chance.pick(['{}', 'null', null, '{"tags":["a"]}', 'not json']),
    )
  },
  (db, chance) => {
    db.prepare('insert into message values (?, ?, ?, ?, ?)').run(
      chance.below(6) === 0
        ? `~${fresh('m')}`
        : chance.below(20) === 0
          ? fresh('long').padEnd(1_500, 'x')
          : fresh('m'),
      'general',
      text(chance),
      null,
      chance.below(2 ** 31),
    )
  },
  (db, chance) => {
    db.prepare('insert or ignore into tag values (?, ?, ?)').run(
      fresh('t'),
      `user-${chance.below(9)}`,
      words(chance, 9),
    )
  },
  (db, chance) => {
    db.prepare('insert into note values (?, ?)').run(text(chance), chance.below(5))
  },
  (db, chance) => {
    db.prepare('insert into config (data, version) values (?, ?)').run(JSON.stringify({v: text(chance)}), 0)
  },
  (db, chance) => {
    db.prepare('insert or replace into preference values (?, ?)').run(
      `key-${chance.below(400)}`,
      chance.pick([null, 1, 1.5, 'x', new Uint8Array([0, 255])]),
    )
  },
  (db, chance) => {
    db.prepare(
      `insert into measure (r, n, i, any_value, b) values (?, ?, ?,
        case ? when 0 then cast(x'ff00' as text) when 1 then 'a' || char(0) || 'b' when 2 then 9223372036854775807 else 7 end, ?)`,
    ).run(
      chance.pick([0.1, -0, 1e300, null]),
      chance.pick([3, 2.5, '12abc']),
      chance.pick([1, 'text in an integer column', 9_007_199_254_740_993n]),
      chance.below(5),
      chance.pick([null, new Uint8Array(40), 'text in a blob column']),
    )
  },
]

const tables = ['chat', 'message', 'tag', 'note', 'config', 'preference', 'measure'] as const
/** A random row of a table, as a condition. */
const anyRow = (table: string) => {
  const place = table === 'preference' ? 'key' : 'rowid'
  return `${place} = (select ${place} from ${table} order by random() limit 1)`
}

const changes: readonly Step[] = [
  ...inserts,
  ...inserts,
  (db, chance) => {
    for (let n = chance.below(60); n > 0; n--) inserts[chance.below(2)]!(db, chance)
  },
  (db, chance) => {
    db.prepare(`update chat set chat = ? where ${anyRow('chat')}`).run(
      JSON.stringify({history: text(chance)}),
    )
  },
  (db, chance) => {
    // The same length, in place: no page but the row's own changes.
    db.exec(
      `update message set content = upper(substr(content, 1, 3)) || substr(content, 4) where ${anyRow('message')}`,
    )
    db.exec(`update measure set i = ${chance.below(1_000)} where ${anyRow('measure')}`)
  },
  db => {
    // REPLACE gives the row another rowid.
    db.exec(`replace into message select * from message where ${anyRow('message')}`)
  },
  db => {
    // Two rows change keys.
    const ids = db
      .prepare('select id from message order by random() limit 2')
      .all()
      .map(row => row['id'] as string)
    const [one, other] = ids
    if (one === undefined || other === undefined) return
    const rename = db.prepare('update message set id = ? where id = ?')
    rename.run('swap', one)
    rename.run(one, other)
    rename.run(other, 'swap')
  },
  (db, chance) => {
    db.exec(
      `update chat set archived = not archived, user_id = 'user-${chance.below(9)}' where ${anyRow('chat')}`,
    )
  },
  db => {
    db.exec(`update note set n = n + 1 where ${anyRow('note')}`)
  },
  ...[1, 2, 3].map((): Step => (db, chance) => {
    const table = chance.pick(tables)
    for (let n = chance.below(4); n > 0; n--) db.exec(`delete from ${table} where ${anyRow(table)}`)
  }),
  db => {
    // Gone and back, as it was.
    db.exec(`create temp table kept as select * from tag where ${anyRow('tag')};
      delete from tag where (id, user_id) in (select id, user_id from kept);
      insert into tag select * from kept; drop table kept`)
  },
]
