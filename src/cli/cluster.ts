import {
  pauseLeadership,
  promote as promoteNode,
  stepDown as askToStepDown,
  testFailover,
  type FailoverTest,
} from '../service/leadership.ts'
import {readCluster, type ClusterStatus, type NodeStatus} from '../state/overview.ts'
import {confirmByName} from './ask.ts'
import {actorName} from './client-change.ts'
import {openHost} from './client.ts'
import {instantText, spanText} from './client-text.ts'
import {command} from './command.ts'
import {table} from './table.ts'

const yes = {type: 'boolean', about: 'Do not ask.'} as const

export const status = command({
  details:
    'Who leads this host’s cluster, since which epoch, and how its nodes are. Works while no node runs.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    const cluster = await readCluster(target.pool)
    context.out(clusterDocument(cluster), clusterText(cluster))
    return 0
  },
})

export const nodes = command({
  details: 'Every node that has ever been started here, with its address, version and last heartbeat.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    const {nodes} = await readCluster(target.pool)
    const documents = nodes.map(node => ({
      ...nodeDocument(node),
      address: node.address,
      started_at: node.started_at,
    }))
    const text = nodes.length === 0 ? noNodes : nodesText(nodes)
    context.out({nodes: documents, count: nodes.length}, text)
    return 0
  },
})

export const promote = command({
  details:
    'Makes a node the leader: the present one finishes the statement at hand and hands over. With --force it is fenced at once, for when it does not answer; nothing it has in flight can be committed then.',
  examples: ['cluster promote node-b', 'cluster promote node-b --expected-leader node-a'],
  positionals: {node: {about: 'Which: its id, or node-a, node-b, node-c, primary, secondary.'}},
  options: {
    force: {type: 'boolean', about: 'Fence a leader that does not answer.'},
    expectedLeader: {type: 'string', about: 'Only if this node leads now.', value: 'NODE'},
    yes,
  },
  async run({node, force, expectedLeader, yes}, context) {
    await using target = await openHost(context)
    const {cluster_name: clusterName, leader_id: leaderId} = await readCluster(target.pool)
    const nodeId = nodeIdOf(clusterName, node)
    if (force)
      await confirmByName(context, {
        will: `This fences ${leaderId ?? 'whoever leads'}: what it has in flight is lost and done again by ${nodeId}.`,
        name: clusterName,
        yes,
      })
    const request = {
      nodeId,
      force,
      actor: actorName(),
      expectedLeader: expectedLeader === undefined ? undefined : nodeIdOf(clusterName, expectedLeader),
    }
    const takeover = await promoteNode(target.pool, request, context.signal)
    if (takeover === 'leads already')
      context.out(
        {cluster_name: clusterName, from: nodeId, to: nodeId, took_ms: 0},
        `${nodeId} leads already.`,
      )
    else {
      const {from, to, epoch, tookMs} = takeover
      context.out(
        {cluster_name: clusterName, from, to, epoch, took_ms: tookMs},
        `${to} leads with epoch ${epoch}, after ${tookText(tookMs)}.`,
      )
    }
    return 0
  },
})

export const stepDown = command({
  details: 'Asks the leader to hand over to the other node, and waits until that one leads.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    const {from, to, epoch, tookMs} = await askToStepDown(target.pool, actorName(), context.signal)
    context.out(
      {from, to, epoch, took_ms: tookMs},
      `${to} leads with epoch ${epoch}, after ${tookText(tookMs)}.`,
    )
    return 0
  },
})

export const pause = command({
  details:
    'Stops failovers, for maintenance: whoever leads goes on, and nobody takes over. A leader that stops is then not replaced; cluster resume ends that.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    await pauseLeadership(target.pool, true, actorName())
    const {cluster_name: clusterName, leader_id: leaderId} = await readCluster(target.pool)
    context.out(
      {cluster_name: clusterName, paused: true, leader_id: leaderId},
      `${clusterName}: no failovers until "owsync cluster resume"; ${leaderId ?? 'nobody'} leads.`,
    )
    return 0
  },
})

export const resume = command({
  details: 'Lets the nodes take over from each other again, after cluster pause.',
  positionals: {},
  options: {},
  async run(_args, context) {
    await using target = await openHost(context)
    await pauseLeadership(target.pool, false, actorName())
    const {cluster_name: clusterName, leader_id: leaderId} = await readCluster(target.pool)
    context.out(
      {cluster_name: clusterName, paused: false, leader_id: leaderId},
      `${clusterName}: nodes take over from each other again; ${leaderId ?? 'nobody yet'} leads.`,
    )
    return 0
  },
})

export const failoverTest = command({
  details:
    'Lets the leader step down, measures until the other node leads, and checks that the old one is fenced and alive as a standby. Syncs go on under the new leader. Needs two active nodes.',
  examples: ['cluster failover-test --yes --json'],
  positionals: {},
  options: {yes},
  async run({yes}, context) {
    await using target = await openHost(context)
    const {cluster_name: clusterName, leader_id: leaderId} = await readCluster(target.pool)
    await confirmByName(context, {
      will: `This makes ${leaderId ?? 'the leader'} of ${clusterName} hand over to the other node. A sync under way is cut short and resumed there.`,
      name: clusterName,
      yes,
    })
    const test = await testFailover(target.pool, actorName(), context.signal)
    const ok = test.isFenced && test.isStandbyAlive
    context.out(
      {
        cluster_name: clusterName,
        ok,
        from: test.from,
        to: test.to,
        epoch: test.epoch,
        took_ms: test.tookMs,
        without_leader_ms: test.withoutLeaderMs ?? null,
        fenced: test.isFenced,
        standby_alive: test.isStandbyAlive,
      },
      testText(test, ok),
    )
    return ok ? 0 : 1
  },
})

/** @returns a node's id from whatever a person calls it. */
function nodeIdOf(clusterName: string, node: string): string {
  const role = {primary: 'node-a', secondary: 'node-b'}[node] ?? node
  return role.startsWith(`${clusterName}-`) ? role : `${clusterName}-${role}`
}

function testText(
  {from, to, epoch, tookMs, withoutLeaderMs, isFenced, isStandbyAlive}: FailoverTest,
  ok: boolean,
) {
  const gap = withoutLeaderMs === undefined ? '' : `, ${tookText(withoutLeaderMs)} of it without a leader`
  return [
    `${from ?? ''} handed over to ${to}, epoch ${epoch}, in ${tookText(tookMs)}${gap}.`,
    isFenced ? 'The old leader is fenced.' : 'The epoch has not grown: the old leader is NOT fenced.',
    isStandbyAlive
      ? `${from ?? ''} is alive as the standby.`
      : `${from ?? ''} has not been heard of since: look at its log.`,
    ok ? 'The failover works.' : 'The failover does not work as it should.',
  ].join('\n')
}

function tookText(ms: number): string {
  return ms < 1_000 ? `${ms} ms` : `${(ms / 1_000).toFixed(1)} s`
}

const noNodes = 'No node has been started yet.'

function clusterDocument(cluster: ClusterStatus) {
  const {cluster_name, leader_id, epoch, lease_expires_at, paused, preferred, nodes} = cluster
  return {cluster_name, leader_id, epoch, lease_expires_at, paused, preferred, nodes: nodes.map(nodeDocument)}
}

function nodeDocument({node_id, role, health, is_leader, last_heartbeat, version}: NodeStatus) {
  return {node_id, role, health, is_leader, last_heartbeat, version}
}

function clusterText({
  cluster_name,
  leader_id,
  epoch,
  lease_expires_at,
  paused,
  preferred,
  nodes,
}: ClusterStatus) {
  const leads =
    leader_id === null
      ? 'nobody leads'
      : `${leader_id} leads, epoch ${epoch}, until ${instantText(lease_expires_at) ?? ''} unless renewed`
  return [
    `${cluster_name}: ${leads}`,
    ...(paused ? ['Paused: nobody takes over. "owsync cluster resume" ends that.'] : []),
    ...(preferred === null ? [] : [`${preferred} is asked to lead.`]),
    '',
    nodes.length === 0
      ? noNodes
      : table(
          ['node', 'health', 'leads', 'heard of', 'version'],
          nodes.map(node => [
            node.node_id,
            node.health,
            node.is_leader ? 'leader' : undefined,
            `${spanText(Math.max(0, (Date.now() - node.last_heartbeat.getTime()) / 1_000))} ago`,
            node.version ?? undefined,
          ]),
        ),
  ].join('\n')
}

function nodesText(nodes: readonly NodeStatus[]): string {
  return table(
    ['node', 'health', 'leads', 'address', 'last heartbeat', 'started'],
    nodes.map(node => [
      node.node_id,
      node.health,
      node.is_leader ? 'leader' : undefined,
      node.address ?? undefined,
      node.last_heartbeat,
      node.started_at,
    ]),
  )
}
