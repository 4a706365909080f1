import assert from 'node:assert/strict'
import {mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {inspect} from 'node:util'
import {test} from 'vitest'
import {UsageError} from '../core/errors.ts'
import {parseEndpoint, urlOf, withChanges, type Endpoint} from './endpoint.ts'

const verified = {rejectUnauthorized: true} as const

const urls: readonly (readonly [url: string, expected: Partial<Endpoint>])[] = [
  [
    'postgres://node:p%40ss@db.example.com:6543/app',
    {host: 'db.example.com', port: 6543, user: 'node', password: 'p@ss', database: 'app', ssl: verified},
  ],
  ['postgresql://u:p@[2001:db8::1]/app', {host: '2001:db8::1', port: 5432, ssl: verified}],
  ['postgresql://127.0.0.1/app', {host: '127.0.0.1', user: 'postgres', password: undefined, ssl: false}],
  ['postgresql://[::1]:99/app', {host: '::1', port: 99, ssl: false}],
  ['postgresql://localhost/my%20db', {database: 'my db', ssl: false}],
  ['postgresql:///app?host=/run/pg&port=5433&user=me', {host: '/run/pg', port: 5433, user: 'me', ssl: false}],
  ['postgresql://u:p@%2Frun%2Fpg/app', {host: '/run/pg', user: 'u', password: 'p'}],
  [
    'postgres://role.ref:a/b@c@pool.example.com/db',
    {user: 'role.ref', password: 'a/b@c', host: 'pool.example.com'},
  ],
]
for (const [url, expected] of urls) {
  test(`${url} is read`, () => {
    const endpoint = parseEndpoint(url)
    for (const [key, value] of Object.entries(expected))
      assert.deepEqual(endpoint[key as keyof Endpoint], value, key)
  })
}

test('the password is in no message and no print, whatever is wrong with the URL', () => {
  const secret = 'hunter2'
  for (const url of [
    `mysql://u:${secret}@h/db`,
    `u:${secret}@h/db`,
    `postgres://u:${secret}@h`,
    `postgres://u:${secret}@/db`,
    `postgres://u:${secret}@h:${secret}/db`,
    `postgres://u:${secret}%zz@h/db`,
    `postgres://u:${secret}?${secret}=1@h/db`,
    `postgres://u:${secret}@h/db?sslmode=require`,
    `postgres://:${secret}@h/db`,
    `postgres://u:${secret}@a,b/db`,
    `postgres://u:${secret}@2001:db8::1/db`,
  ]) {
    assert.throws(
      () => parseEndpoint(url),
      error => error instanceof UsageError && !inspect(error, {depth: 9}).includes(secret),
      url,
    )
  }
  const endpoint = parseEndpoint(`postgres://u:${secret}@h/db`)
  assert.equal(endpoint.display, 'u@h:5432/db')
  assert.ok(!(inspect(endpoint) + JSON.stringify(endpoint)).includes(secret))
  assert.ok(Object.isFrozen(endpoint))
})

test('sslmode in the URL is refused with the name of the setting to use', () => {
  assert.throws(
    () => parseEndpoint('postgres://u@h/db?sslmode=disable'),
    (error: UsageError) => error.message.includes('sslmode=') && error.next.includes('DB_SSL=verify-full'),
  )
})

test('TLS is verified unless it is switched off or the way is local', async () => {
  assert.deepEqual(parseEndpoint('postgres://h/db', {ssl: 'verify-full'}).ssl, verified)
  assert.equal(parseEndpoint('postgres://h/db', {ssl: 'disable'}).ssl, false)
  assert.equal(parseEndpoint('postgres://localhost/db', {ssl: 'verify-full'}).ssl, false)

  const folder = await mkdtemp(join(tmpdir(), 'owsync-endpoint-'))
  try {
    const caFile = join(folder, 'ca.crt')
    assert.throws(() => parseEndpoint('postgres://h/db', {caFile}), /cannot be read/)
    await writeFile(caFile, 'no certificate')
    assert.throws(() => parseEndpoint('postgres://h/db', {caFile}), /holds no certificate/)
    const ca = '-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n'
    await writeFile(caFile, ca)
    assert.deepEqual(parseEndpoint('postgres://localhost/db', {caFile}).ssl, {...verified, ca})
    assert.equal(parseEndpoint('postgresql:///db?host=/run', {caFile}).ssl, false)
  } finally {
    await rm(folder, {recursive: true})
  }
})

test('an endpoint written as a URL is read back as itself', () => {
  for (const url of [
    'postgresql://a%2Fb:p%3A%40%2F%3F@h:1/d%20b',
    'postgresql://u@[::1]:5432/db',
    'postgresql://u:p@/db?host=%2Frun%2Fpg&port=7',
  ]) {
    assert.equal(urlOf(parseEndpoint(url)), url)
    assert.equal(urlOf(parseEndpoint(urlOf(parseEndpoint(url)))), url)
  }
})

test('another database of the same server keeps everything else', () => {
  const endpoint = withChanges(parseEndpoint('postgres://u:p@h:7/db'), {database: 'other'})
  assert.equal(urlOf(endpoint), 'postgresql://u:p@h:7/other')
  assert.equal(endpoint.display, 'u@h:7/other')
})
