import assert from 'node:assert/strict'
import {Writable} from 'node:stream'
import {describe, test} from 'vitest'
import {createLog, type LogOptions} from './log.ts'

test('a line is one JSON object: level, instant, message, facts', () => {
  const [line] = logged({level: 'info'}, log => {
    log.child({node: 'a'}).info({client: 'acme', rows: 3, generation: 12n}, 'cut applied')
  })
  const {time, ...facts} = JSON.parse(line!) as Record<string, unknown>
  assert.match(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/)
  assert.deepEqual(facts, {
    level: 'info',
    node: 'a',
    client: 'acme',
    rows: 3,
    generation: 12,
    msg: 'cut applied',
  })
})

test('levels below the chosen one are not written', () => {
  const lines = logged({level: 'warn'}, log => {
    log.info({}, 'no')
    log.warn({}, 'yes')
  })
  assert.equal(lines.length, 1)
})

describe('no secret reaches a log', () => {
  for (const [what, fields, message] of [
    ['in a field', {url: 'postgres://u:hunter2@h/d'}, 'm'],
    ['deep in a field', {a: {b: ['x postgres://u:hunter2@h/d']}}, 'm'],
    ['in the message', {}, 'connecting to postgres://u:hunter2@h/d'],
    ['in an error', {err: new Error('cannot reach postgres://u:hunter2@h/d')}, 'm'],
    ['in the cause of an error', {err: new Error('x', {cause: new Error('postgres://u:hunter2@h/d')})}, 'm'],
    ['as a field of that name', {password: 'hunter2', settings: {token: 'hunter2'}}, 'm'],
    [
      'as a property of an error',
      {err: Object.assign(new Error('x'), {row: 'hunter2', detail: 'hunter2'})},
      'm',
    ],
  ] as const) {
    for (const format of ['json', 'pretty'] as const) {
      test(`${what}, ${format}`, () => {
        const [line] = logged({level: 'info', format}, log => {
          log.info(fields, message)
        })
        assert.ok(line && !line.includes('hunter2'), line)
      })
    }
  }
})

test('an error keeps its class, code, message and causes', () => {
  const cause = Object.assign(new TypeError('inner'), {code: 'ECONNREFUSED'})
  const [line] = logged({level: 'info'}, log => {
    log.error({err: new Error('outer', {cause})}, 'failed')
  })
  const {err} = JSON.parse(line!) as {err: Record<string, unknown> & {cause: Record<string, unknown>}}
  assert.equal(err.message, 'outer')
  assert.equal(err.cause.type, 'TypeError')
  assert.equal(err.cause.code, 'ECONNREFUSED')
})

test('a pretty line reads as a sentence with its facts', () => {
  const [line] = logged({level: 'info', format: 'pretty'}, log => {
    log.warn({client: 'acme', reason: 'two words'}, 'paused')
  })
  assert.match(line!, /^\d\d:\d\d:\d\d\.\d{3} WARN {2}paused client=acme reason="two words"\n$/)
})

function logged(options: LogOptions, use: (log: ReturnType<typeof createLog>) => void): string[] {
  const lines: string[] = []
  const stream = new Writable({
    write(chunk: Buffer, _encoding, done) {
      lines.push(chunk.toString())
      done()
    },
  })
  use(createLog({stream, ...options}))
  return lines
}
