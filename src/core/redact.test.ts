import assert from 'node:assert/strict'
import {test} from 'vitest'
import {redact} from './redact.ts'

for (const [what, text, expected] of [
  [
    'a URL',
    'postgres://host:hunter2@db.example:5432/postgres',
    'postgres://host:***@db.example:5432/postgres',
  ],
  ['a URL within a sentence', 'cannot reach smtps://a:b@c, sorry', 'cannot reach smtps://a:***@c, sorry'],
  ['a password with an @', 'postgres://u:p@ss@h/db', 'postgres://u:***@h/db'],
  ['a password with slashes and colons', 'postgres://u:a:b/c?d#e@h/db', 'postgres://u:***@h/db'],
  ['a URL without a user', 'redis://:pw@h', 'redis://:***@h'],
  ['two URLs', '"x://a:b@c" "y://d:e@f"', '"x://a:***@c" "y://d:***@f"'],
  ['a keyword', 'host=h password=hunter2 user=u', 'host=h password=*** user=u'],
  ['what was redacted before', 'postgres://u:***@h password=***', 'postgres://u:***@h password=***'],
] as const) {
  test(`the password in ${what} is hidden`, () => {
    assert.equal(redact(text), expected)
  })
}

for (const text of [
  'https://db.example:5432/x',
  'postgres://user@host/db',
  'mail a:b@c',
  '{"a":"x://h:1","b":"y@z"}',
]) {
  test(`${text} holds no password and stays`, () => {
    assert.equal(redact(text), text)
  })
}
