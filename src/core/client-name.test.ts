import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import {isSameClient, LONGEST_CLIENT_NAME, parseClientName} from './client-name.ts'
import {UsageError} from './errors.ts'

const longest = 'a'.repeat(LONGEST_CLIENT_NAME)

describe('a client name becomes a schema name', () => {
  for (const [name, schema] of [
    ['acme', 'acme'],
    ['a1', 'a1'],
    ['4u', '4u'],
    ['chat-acme-com', 'chat_acme_com'],
    ['chat.acme.com', 'chat_acme_com'],
    ['chat_acme_com', 'chat_acme_com'],
    ['a--b', 'a__b'],
    ['public1', 'public1'],
    ['pg', 'pg'],
    ['pgadmin', 'pgadmin'],
    [longest, longest],
  ] as const) {
    test(`${name} lives in ${schema}`, () => {
      assert.deepEqual(parseClientName(name), {name, schema})
    })
  }
})

describe('what is no client name is refused, with a name that would do', () => {
  for (const [name, fault, next] of [
    ['', 'it is empty', 'Use 2 to 63'],
    ['a', 'fewer than two', 'Use 2 to 63'],
    ['Acme', 'only a-z', 'Did you mean "acme"?'],
    ['chat.acme.com:8443', 'only a-z', 'Did you mean "chat.acme.com-8443"?'],
    ['acme corp', 'only a-z', 'Did you mean "acme-corp"?'],
    ['müller', 'only a-z', 'Did you mean "m-ller"?'],
    ['-acme', 'begin and end', 'Did you mean "acme"?'],
    ['acme_', 'begin and end', 'Did you mean "acme"?'],
    ['acme.', 'begin and end', 'Did you mean "acme"?'],
    ['a"; drop schema acme; --', 'only a-z', 'Did you mean "a-drop-schema-acme"?'],
    ['acme\n', 'only a-z', 'Did you mean "acme"?'],
    [`${longest}b`, 'it has 64 characters', `Did you mean "${longest}"?`],
    ['public', 'owns a schema', 'client-public'],
    ['pg_toast', 'owns a schema', 'client-toast'],
    ['pg.catalog', 'owns a schema', 'another name'],
    ['sync-metadata', 'owns a schema', 'another name'],
    ['information.schema', 'owns a schema', 'another name'],
    ['PUBLIC', 'only a-z', 'Use 2 to 63'],
  ] as const) {
    test(JSON.stringify(name), () => {
      assert.throws(
        () => parseClientName(name),
        (error: unknown) =>
          error instanceof UsageError && error.message.includes(fault) && error.next.includes(next),
      )
    })
  }
})

test('every name that is suggested is accepted', () => {
  for (const bad of ['Acme', 'x y', '..a..b..', '-acme', 'ÄÖÜ-gmbh', 'storage', 'pg_temp', 'A'.repeat(90)]) {
    const suggestion = /"(.+)"/.exec(nextOf(bad))?.[1]
    assert.doesNotThrow(() => parseClientName(suggestion!), bad)
  }
})

test('punctuation does not make another client', () => {
  assert.ok(isSameClient('chat.acme.com', 'chat-acme_com'))
  assert.ok(!isSameClient('chat.acme.com', 'chat-acme'))
})

function nextOf(name: string): string {
  try {
    parseClientName(name)
  } catch (error) {
    if (error instanceof UsageError) return error.next
  }
  return ''
}
