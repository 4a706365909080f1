import {Readable} from 'node:stream'
import {setTimeout as sleep} from 'node:timers/promises'
import {z} from 'zod'
import type {ApiPorts, FeedEvent} from './ports.ts'
import {access, type App} from './route.ts'
import {problems} from './schemas.ts'
import type {Tokens} from './tokens.ts'

/** A listener that has so much unread is let go; it comes back with the id of the last event it has. */
const MOST_UNREAD_BYTES = 1_048_576

type Options = {readonly tokens: Tokens; readonly keepAliveMs: number}

/** Events as they happen, as `text/event-stream`. */
export function eventRoutes(app: App, {events}: ApiPorts, {tokens, keepAliveMs}: Options): void {
  app.get(
    '/api/v1/events',
    {
      exposeHeadRoute: false,
      config: {access: 'read', isStream: true},
      schema: {
        ...access(
          'read',
          'Server-sent events: `snapshot` first, then `job`, `leader`, `conflict`, `deployment`. With Last-Event-ID only what was missed, when that is still known.',
          'events',
        ),
        headers: z.object({'last-event-id': z.string().max(200).optional()}),
        produces: ['text/event-stream'],
        response: problems,
      },
    },
    async (request, reply) => {
      const over = new AbortController()
      const stream = new Readable({read: () => undefined})
      const send = (text: string) => {
        if (stream.destroyed) return
        stream.push(text)
        if (stream.readableLength > MOST_UNREAD_BYTES) stream.destroy()
      }
      stream.once('close', () => {
        over.abort()
      })
      events(
        request.headers['last-event-id'],
        event => {
          send(textOf(event))
        },
        over.signal,
      )
      const stays = async () => {
        await tokens.authenticate(request.headers.authorization, 'read')
        send(': still here\n\n')
      }
      void repeat(stays, keepAliveMs, over.signal).catch(() => stream.destroy())
      reply.raw.once('close', () => stream.destroy())
      await reply
        .headers({
          'content-type': 'text/event-stream; charset=utf-8',
          // A proxy that gathers what it forwards would hold events back.
          'x-accel-buffering': 'no',
        })
        .send(stream as never)
    },
  )
}

/** @throws what `work` throws; nothing when `signal` aborts. */
async function repeat(work: () => Promise<void>, everyMs: number, signal: AbortSignal): Promise<void> {
  for (;;) {
    try {
      await sleep(everyMs, undefined, {signal})
    } catch {
      return
    }
    await work()
  }
}

function textOf({id, event, data}: FeedEvent): string {
  return `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data)}\n\n`
}
