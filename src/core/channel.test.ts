import assert from 'node:assert/strict'
import {setImmediate as breathe} from 'node:timers/promises'
import {test} from 'vitest'
import {Channel} from './channel.ts'

test('everything arrives in order, whoever is first, and the reader ends with the channel', async () => {
  const channel = new Channel<number>()
  channel.push(1)
  channel.push(2)
  const arrived: number[] = []
  const reader = (async () => {
    for await (const n of channel) arrived.push(n)
  })()
  await breathe()
  assert.deepEqual(arrived, [1, 2])
  for (const n of [3, 4]) {
    channel.push(n)
    await breathe()
  }
  channel.push(5)
  channel.close()
  await reader
  assert.deepEqual(arrived, [1, 2, 3, 4, 5])
})
