import type {IncomingMessage, Server, ServerResponse} from 'node:http'
import type {FastifyInstance, FastifyRequest} from 'fastify'
import type {ZodTypeProvider} from 'fastify-type-provider-zod'
import type {Caller} from './tokens.ts'

// What every route is made with.

/** Who may call a route: whoever is near or can read, or the holder of a token of that scope. */
export type Access = 'local' | 'read' | 'operate'

// Only interfaces can be added to.
/* eslint-disable @typescript-eslint/consistent-type-definitions */
declare module 'fastify' {
  interface FastifyContextConfig {
    access?: Access
    /** Its duration says nothing: it lasts as long as somebody listens. */
    isStream?: boolean
  }
  interface FastifyRequest {
    /** Whoever's token was sent; nobody's for what needs none. */
    caller: Caller | undefined
  }
}
/* eslint-enable @typescript-eslint/consistent-type-definitions */

export type App = FastifyInstance<Server, IncomingMessage, ServerResponse, never, ZodTypeProvider>

/** What the documentation says about who may call a route, and what the guard lets through. */
export function access(needed: Access, summary: string, tag: string) {
  const security = needed === 'local' ? [] : [{token: []}]
  const notes = {
    local: 'Without a token from API_LOCAL_NETWORKS, else with one of any scope.',
    read: 'Needs a token.',
    operate: 'Needs a token with the scope `operate`.',
  }
  return {security, summary, tags: [tag], description: notes[needed]}
}

/** @returns who asked. Only for routes that need a token. */
export function callerOf({caller}: FastifyRequest): Caller {
  if (!caller) throw new Error('a route that needs a token was reached without one')
  return caller
}
