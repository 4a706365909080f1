import assert from 'node:assert/strict'
import {createServer} from 'node:http'
import type {AddressInfo} from 'node:net'
import {describe, test} from 'vitest'
import {silentLog, type Fields} from '../telemetry/log.ts'
import {announce, webhookOf} from './announce.ts'

const announcement = {client: 'acme', generation: 7, tables: ['chat', 'user']}
const {signal} = new AbortController()

/** A receiver that answers with these codes, one after the other, and then with the last one. */
async function receiver(...codes: number[]) {
  const bodies: unknown[] = []
  const server = createServer((request, response) => {
    let text = ''
    request.on('data', (piece: Buffer) => (text += piece.toString()))
    request.on('end', () => {
      bodies.push(JSON.parse(text))
      response.writeHead(codes[Math.min(bodies.length, codes.length) - 1]!, {location: '/elsewhere'}).end()
    })
  })
  await new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve))
  const {port} = server.address() as AddressInfo
  return {
    url: new URL(`http://127.0.0.1:${port}/hook/secret`),
    bodies,
    [Symbol.dispose]: () => {
      server.close()
      server.closeAllConnections()
    },
  }
}

describe('a webhook', () => {
  test('is told what was applied', async () => {
    using hook = await receiver(204)
    assert.equal(await announce(hook.url, announcement, silentLog, signal, 1), true)
    assert.deepEqual(hook.bodies, [announcement])
  })

  test('that does not take it is told again', async () => {
    using hook = await receiver(500, 503, 200)
    assert.equal(await announce(hook.url, announcement, silentLog, signal, 1), true)
    assert.equal(hook.bodies.length, 3)
  })

  test('that stays deaf is left after four times, and that is logged without its path', async () => {
    using hook = await receiver(500)
    const lines: string[] = []
    const log = {...silentLog, warn: (fields: Fields) => lines.push(JSON.stringify(fields))}
    assert.equal(await announce(hook.url, announcement, log, signal, 1), false)
    assert.equal(hook.bodies.length, 4)
    assert.equal(lines.length, 1)
    assert.doesNotMatch(lines[0]!, /secret/)
  })

  test('that leads elsewhere is not followed', async () => {
    using hook = await receiver(302)
    assert.equal(await announce(hook.url, announcement, silentLog, signal, 1), false)
  })

  test('is an http address in the settings, and nothing else', () => {
    assert.equal(webhookOf({webhook: 'https://example.com/x'})?.host, 'example.com')
    for (const webhook of [undefined, null, 1, '', 'example.com', 'file:///etc/passwd', 'javascript:1'])
      assert.equal(webhookOf({webhook}), undefined)
  })
})
