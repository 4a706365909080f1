import {z} from 'zod'
import type {ApiPorts} from './ports.ts'
import {refusals} from './problem.ts'
import {access, type App} from './route.ts'
import {HealthBody, problems} from './schemas.ts'

/** What balancers, containers and Prometheus ask of one node. */
export function nodeRoutes(app: App, {health, faults, isLeader, metrics}: ApiPorts): void {
  const open = (summary: string) => access('local', summary, 'node')
  const config = {access: 'local'} as const

  app.get(
    '/health',
    {
      config,
      schema: {
        ...open('How this node and its deployments are; 503 when unhealthy.'),
        response: {200: HealthBody, 503: HealthBody, ...problems},
      },
    },
    async (_request, reply) => {
      const body = await health()
      return reply.code(body.status === 'unhealthy' ? 503 : 200).send(body)
    },
  )

  app.get(
    '/livez',
    {
      config,
      schema: {...open('Whether the process runs; asks nothing of Postgres.'), response: {200: Alive}},
    },
    () => ({alive: true as const}),
  )

  app.get(
    '/readyz',
    {
      config,
      schema: {
        ...open('Whether the node can do its part, leading or not; else 503.'),
        response: {200: Ready, 503: Ready},
      },
    },
    async (_request, reply) => {
      const reasons = [...(await faults())]
      const isReady = reasons.length === 0
      return reply.code(isReady ? 200 : 503).send({ready: isReady, reasons})
    },
  )

  app.get(
    '/leader',
    {
      config,
      schema: {...open('200 on the leader, else 503.'), response: {200: Leader, 503: Leader}},
    },
    (_request, reply) => {
      const leads = isLeader()
      reply.code(leads ? 200 : 503)
      return {is_leader: leads}
    },
  )

  app.get(
    '/metrics',
    {config, schema: {...open('Prometheus’ text format.'), produces: ['text/plain']}},
    async (_request, reply) => {
      if (!metrics) throw refusals.noThing('/metrics: ENABLE_METRICS is false')
      return reply.type(metrics.contentType).send(await metrics.render())
    },
  )
}

const Alive = z.object({alive: z.literal(true)})
const Ready = z.object({ready: z.boolean(), reasons: z.array(z.string())})
const Leader = z.object({is_leader: z.boolean()})
