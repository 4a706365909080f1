import assert from 'node:assert/strict'
import {test} from 'vitest'
import {applicationName} from './application-name.ts'

test('a session is called by its node, and the epoch it writes under', () => {
  assert.equal(applicationName('host-a-node-a'), 'owsync/host-a-node-a')
  assert.equal(applicationName('host-a-node-a', 'api'), 'owsync/host-a-node-a/api')
  assert.equal(applicationName('host-a-node-a', 7n), 'owsync/host-a-node-a/7')
})

test('however long the cluster’s name is, the server has nothing to cut, and node and epoch stay', () => {
  for (let length = 1; length <= 63; length++)
    for (const epoch of [1n, 999_999_999_999_999_999n]) {
      const name = applicationName(`${'c'.repeat(length)}-node-b`, epoch)
      assert.ok(Buffer.byteLength(name) < 63, name)
      assert.match(name, /^owsync\/c+(~c*)?-node-b\/\d+$/)
      assert.ok(name.endsWith(`/${epoch}`))
    }
})
