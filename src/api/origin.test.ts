import assert from 'node:assert/strict'
import {test} from 'vitest'
import {networkCheck, originCheck} from './origin.ts'

let names = ['sync.example.com', '*.wild.example', 'node-a']
const check = originCheck(() => names)

for (const host of [
  'localhost',
  'LOCALHOST:9443',
  '127.0.0.1:9443',
  '[::1]:9443',
  '10.1.2.3',
  'sync.example.com',
  'sync.example.com.:9443',
  'any.wild.example',
  'node-a:9443',
])
  test(`Host ${host} is ours`, () => {
    check({host}, 'GET')
    check({host, origin: `http://${host}`}, 'POST')
    check({host, origin: `https://${host}`}, 'POST')
  })

for (const host of [
  undefined,
  '',
  'evil.example',
  'localhost.evil.example',
  'evil.example:9443',
  'a.b.wild.example',
  '127.0.0.1.evil.example',
  'localhost@evil.example',
  'localhost:9443:1',
  'localhost/evil',
  '[::1',
  'x'.repeat(10_000),
])
  test(`Host ${JSON.stringify(host?.slice(0, 40))} is not`, () => {
    assert.throws(
      () => {
        check({host}, 'GET')
      },
      {code: 'SYNC_API_ORIGIN', status: 403},
    )
  })

for (const origin of [
  'http://evil.example',
  'null',
  'http://localhost:1',
  'http://127.0.0.1:9443',
  '',
  'file://',
])
  test(`a page from ${JSON.stringify(origin)} is refused at localhost:9443`, () => {
    assert.throws(
      () => {
        check({host: 'localhost:9443', origin}, 'GET')
      },
      {code: 'SYNC_API_ORIGIN'},
    )
  })

test('a browser that says the page is another site’s is believed', () => {
  const headers = {host: 'localhost', 'sec-fetch-site': 'cross-site'}
  assert.throws(
    () => {
      check(headers, 'POST')
    },
    {code: 'SYNC_API_ORIGIN'},
  )
  check(headers, 'GET')
  check({...headers, 'sec-fetch-site': 'same-origin'}, 'POST')
})

test('an address is near when it is in a network, whichever way it is written', () => {
  const isNear = networkCheck(['127.0.0.0/8', '::1/128', '172.18.0.1/32', 'fd00::/8'])
  for (const address of ['127.0.0.1', '127.9.9.9', '::1', '::ffff:127.0.0.1', '172.18.0.1', 'fd12::1'])
    assert.equal(isNear(address), true, address)
  for (const address of [
    '128.0.0.1',
    '172.18.0.2',
    '::2',
    '::ffff:10.0.0.1',
    'fe80::1%eth0',
    '',
    'localhost',
  ])
    assert.equal(isNear(address), false, address)
})

test('names that change are ours, or not any more, from then on', () => {
  const before = names
  names = ['new.example.com']
  try {
    check({host: 'new.example.com'}, 'GET')
    assert.throws(
      () => {
        check({host: 'sync.example.com'}, 'GET')
      },
      {code: 'SYNC_API_ORIGIN'},
    )
  } finally {
    names = before
  }
})
