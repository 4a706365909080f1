import assert from 'node:assert/strict'
import {test} from 'vitest'
import {fragment, identifier, join, json, raw, render} from './sql.ts'

test('a value becomes a parameter and never text', () => {
  assert.deepEqual(render(fragment`select ${"'; drop table x; --"}, ${1n}`), {
    text: 'select $1, $2',
    values: ["'; drop table x; --", '1'],
  })
})

test('fragments are spliced in, and their parameters numbered anew', () => {
  const where = join([fragment`a = ${1}`, fragment`b = ${'two'}`], ' and ')
  assert.deepEqual(render(fragment`select ${0} from t where ${where} limit ${3}`), {
    text: 'select $1 from t where a = $2 and b = $3 limit $4',
    values: ['0', '1', 'two', '3'],
  })
})

test('a name is quoted, whatever it holds', () => {
  assert.equal(render(identifier('chat"acme', 'Message.Id')).text, '"chat""acme"."Message.Id"')
  assert.throws(() => identifier(''), TypeError)
  assert.throws(() => identifier('a\0b'), TypeError)
})

test('text that we made ourselves stands as it is', () => {
  assert.deepEqual(render(fragment`create table t (${raw('a bigint, b text')})`), {
    text: 'create table t (a bigint, b text)',
    values: [],
  })
})

test('an object is refused unless it is said to be JSON', () => {
  assert.throws(() => render(fragment`select ${{a: 1}}`), /wrap it in json/)
  assert.throws(() => render(fragment`select ${[[{a: 1}]]}`), /wrap it in json/)
  assert.throws(() => render(fragment`select ${[raw('now()')]}`), /fragment cannot stand inside/)
  assert.throws(() => render(fragment`select ${new Date(NaN)}`), RangeError)
  assert.deepEqual(render(fragment`select ${json({a: [1, null]})}`).values, ['{"a":[1,null]}'])
  assert.deepEqual(render(fragment`select ${json(undefined)}`).values, ['null'])
})

test('no join of nothing surprises: it is empty text', () => {
  assert.deepEqual(render(join([])), {text: '', values: []})
})
