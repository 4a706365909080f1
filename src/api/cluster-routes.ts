import {z} from 'zod'
import type {ApiPorts} from './ports.ts'
import {access, callerOf, type App} from './route.ts'
import {ClusterBody, problems} from './schemas.ts'

const NodeId = z.string().min(1).max(255)

export function clusterRoutes(app: App, {cluster}: ApiPorts): void {
  app.get(
    '/api/v1/cluster/status',
    {
      config: {access: 'read'},
      schema: {
        ...access('read', 'Who leads, and how the nodes are.', 'cluster'),
        response: {200: ClusterBody, ...problems},
      },
    },
    () => cluster.status(),
  )

  app.post(
    '/api/v1/cluster/promote',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Ask that a node leads; the leader hands over at its next renewal.', 'cluster'),
        body: z.strictObject({
          node_id: NodeId.meta({description: 'Its id, or its role.'}),
          expected_leader: NodeId.optional().meta({description: '409 when another node leads by now.'}),
          force: z
            .boolean()
            .default(false)
            .meta({description: 'Fence the present leader at once: for when it does not answer.'}),
        }),
        response: {202: z.object({success: z.literal(true), node_id: z.string()}), ...problems},
      },
    },
    async (request, reply) => {
      const {node_id: nodeId, expected_leader: expectedLeader, force} = request.body
      const promoted = await cluster.promote({nodeId, expectedLeader, force}, callerOf(request))
      return reply.code(202).send({success: true, node_id: promoted})
    },
  )

  app.post(
    '/api/v1/cluster/step-down',
    {
      config: {access: 'operate'},
      schema: {
        ...access('operate', 'Ask the leader to hand over to another node that is alive.', 'cluster'),
        body: z.strictObject({expected_leader: NodeId.optional()}).nullish(),
        response: {202: z.object({success: z.literal(true), successor: z.string()}), ...problems},
      },
    },
    async (request, reply) => {
      const successor = await cluster.stepDown(request.body?.expected_leader, callerOf(request))
      return reply.code(202).send({success: true, successor})
    },
  )
}
