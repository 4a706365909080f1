import {randomUUID} from 'node:crypto'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import {fastify, type FastifyReply, type FastifyRequest} from 'fastify'
import {
  jsonSchemaTransform,
  serializerCompiler,
  validatorCompiler,
  type ZodTypeProvider,
} from 'fastify-type-provider-zod'
import type {Log} from '../telemetry/log.ts'
import type {Metrics} from '../telemetry/metrics.ts'
import {clusterRoutes} from './cluster-routes.ts'
import {conflictRoutes} from './conflict-routes.ts'
import {deploymentRoutes} from './deployment-routes.ts'
import {eventRoutes} from './event-routes.ts'
import {jobRoutes} from './job-routes.ts'
import {parseJson} from './json.ts'
import {nodeRoutes} from './node-routes.ts'
import {networkCheck, originCheck} from './origin.ts'
import type {ApiPorts} from './ports.ts'
import {problemOf, refusals} from './problem.ts'
import type {App} from './route.ts'
import {stateRoutes} from './state-routes.ts'
import type {Tokens} from './tokens.ts'

/** How the API is served. */
export type ApiOptions = {
  readonly tokens: Tokens
  /** From where health, metrics and the documentation may be read without a token: `10.0.0.0/8`. */
  readonly localNetworks: readonly string[]
  /** Host names that are ours, beside addresses and localhost. */
  readonly hostNames: () => readonly string[]
  readonly version: string
  readonly log: Log
  readonly metrics?: Pick<Metrics, 'httpRequests'>
  /** PEM texts; absent: no TLS. */
  readonly tls?: {readonly cert: string; readonly key: string} | undefined
  /** A comment is sent on event streams this often, and their token is looked at again. */
  readonly keepAliveMs?: number
}

/** Bodies are settings and documents. */
const BODY_LIMIT = 1_048_576

/**
 * Makes the HTTP API out of the few functions it needs. Nothing listens until `listen()`; tests call `inject()`.
 */
export async function buildApi(ports: ApiPorts, options: ApiOptions): Promise<App> {
  const {log, tokens, tls} = options
  const app = fastify({
    // The types know one kind of server or the other; both take the same requests.
    ...((tls ? {https: tls} : {}) as object),
    bodyLimit: BODY_LIMIT,
    routerOptions: {maxParamLength: 4_096},
    requestTimeout: 30_000,
    connectionTimeout: 60_000,
    keepAliveTimeout: 65_000,
    // Streams and idle connections do not hold up the end.
    forceCloseConnections: true,
    genReqId: ({headers}) => requestIdOf(headers['x-request-id']) ?? randomUUID(),
    frameworkErrors: (error, request, reply) => {
      sendProblem(log, error, request, reply)
    },
    clientErrorHandler(error, socket) {
      if (socket.writable) socket.end(rawProblem(error.code))
      else socket.destroy()
    },
  }).withTypeProvider<ZodTypeProvider>() as unknown as App

  app.setValidatorCompiler(validatorCompiler)
  app.setSerializerCompiler(serializerCompiler)
  app.removeAllContentTypeParsers()
  app.addContentTypeParser('application/json', {parseAs: 'string'}, (_request, body, done) => {
    try {
      done(null, parseJson(body as string))
    } catch (error) {
      done(error as Error)
    }
  })
  app.setErrorHandler((error, request, reply) => {
    sendProblem(log, error, request, reply)
  })
  app.setNotFoundHandler((request, reply) => {
    sendProblem(log, refusals.noRoute(request.method, pathOf(request.url)), request, reply)
  })
  app.decorateRequest('caller', undefined)
  guard(app, options)
  observe(app, options)

  await app.register(swagger, {
    openapi: {
      openapi: '3.1.0',
      info: {
        title: 'openwebui-sync',
        version: options.version,
        description: 'Keeps the SQLite database of each Open WebUI mirrored in its own Postgres schema.',
      },
      components: {securitySchemes: {token: {type: 'http', scheme: 'bearer'}}},
    },
    transform: jsonSchemaTransform,
  })
  await app.register(swaggerUi, {
    routePrefix: '/docs',
    logo: null as never,
    theme: {title: 'openwebui-sync API'},
  })
  for (const routes of [nodeRoutes, clusterRoutes, stateRoutes, deploymentRoutes, jobRoutes, conflictRoutes])
    routes(app, ports)
  eventRoutes(app, ports, {tokens, keepAliveMs: options.keepAliveMs ?? 15_000})
  return app
}

/** Every request passes here first, before its body is read. */
function guard(app: App, {tokens, localNetworks, hostNames}: ApiOptions): void {
  const isNear = networkCheck(localNetworks)
  const checkOrigin = originCheck(hostNames)
  app.addHook('onRequest', async (request, reply) => {
    reply.headers({
      'x-request-id': request.id,
      'x-content-type-options': 'nosniff',
      'x-frame-options': 'DENY',
      'referrer-policy': 'no-referrer',
      'cache-control': 'no-store',
    })
    checkOrigin(request.headers, request.method)
    if (request.is404) return
    const {authorization} = request.headers
    // What says nothing about who may call it is the documentation's own, or a mistake.
    const needed = request.routeOptions.config.access ?? (isDocs(request) ? 'local' : 'operate')
    if (needed === 'local' && authorization === undefined && isNear(request.ip)) return
    request.caller = await tokens.authenticate(
      authorization,
      needed === 'operate' ? 'operate' : 'read',
      request.ip,
    )
  })
}

/** Counts and logs what was answered: changes and failures at `info` and above, what is only read at `debug`. */
function observe(app: App, {log, metrics}: ApiOptions): void {
  app.addHook('onResponse', (request, reply, done) => {
    const {method, routeOptions} = request
    const route = request.is404 ? 'none' : (routeOptions.url ?? 'none')
    const status = reply.statusCode
    const ms = Math.round(reply.elapsedTime * 10) / 10
    if (!routeOptions.config.isStream)
      metrics?.httpRequests.observe({method: methodOf(method), route, status}, reply.elapsedTime / 1_000)
    const facts = {request: request.id, method, route, status, ms, caller: request.caller?.name}
    const isChange = method !== 'GET' && method !== 'HEAD'
    log[isChange && request.caller ? 'info' : 'debug'](facts, 'request answered')
    done()
  })
}

function sendProblem(log: Log, error: unknown, request: FastifyRequest, reply: FastifyReply): void {
  const {problem, headers} = problemOf(error, {requestId: request.id, bodyLimit: BODY_LIMIT})
  if (problem.status >= 500 && problem.status !== 501) {
    const facts = {request: request.id, method: request.method, route: request.routeOptions.url, err: error}
    log[problem.status === 500 ? 'error' : 'warn'](facts, 'request failed')
  }
  void reply
    .code(problem.status)
    .headers({'x-request-id': request.id, ...headers})
    .type('application/problem+json')
    .serializer(JSON.stringify)
    .send(problem)
}

/** The answer to what is not even HTTP, for which there is no request. */
function rawProblem(code: string | undefined): string {
  const [status, title] =
    code === 'HPE_HEADER_OVERFLOW'
      ? [431, 'Request Header Fields Too Large']
      : code === 'ERR_HTTP_REQUEST_TIMEOUT'
        ? [408, 'Request Timeout']
        : [400, 'Bad Request']
  const {problem} = problemOf(refusals.invalid('this is not an HTTP request that can be answered'), {
    requestId: randomUUID(),
    bodyLimit: BODY_LIMIT,
  })
  const body = JSON.stringify({...problem, status, title})
  return `HTTP/1.1 ${status} ${title}\r\nConnection: close\r\nContent-Type: application/problem+json\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`
}

function requestIdOf(given: string | string[] | undefined): string | undefined {
  return typeof given === 'string' && /^[A-Za-z0-9._-]{1,64}$/.test(given) ? given : undefined
}

const methods = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE', 'OPTIONS'])

/** Anything can stand where a method should: it must not become a label of its own. */
function methodOf(method: string): string {
  return methods.has(method) ? method : 'other'
}

function isDocs({routeOptions}: FastifyRequest): boolean {
  return routeOptions.url === '/docs' || routeOptions.url?.startsWith('/docs/') === true
}

function pathOf(url: string): string {
  return url.split('?', 1)[0] ?? ''
}
