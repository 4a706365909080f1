/** The server keeps 63 bytes of a name; one that has so many may have been cut, and is not believed. */
const MOST_BYTES = 62
/** Of a node id, what says which of its cluster’s nodes it is. */
const ROLE_BYTES = 16

/**
 * What the sessions of a node are called in `pg_stat_activity`: `owsync/<node>`, or `owsync/<node>/<part>`. The name of a
 * long cluster loses its middle, never the part: a takeover goes by the epoch in it.
 *
 * @param nodeId ASCII, as the control schema has it.
 * @param part the epoch that the sessions write under, or what they are for.
 */
export function applicationName(nodeId: string, part?: bigint | 'api'): string {
  const tail = part === undefined ? '' : `/${part}`
  const room = MOST_BYTES - 'owsync/'.length - tail.length
  const shown =
    nodeId.length <= room ? nodeId : `${nodeId.slice(0, room - ROLE_BYTES - 1)}~${nodeId.slice(-ROLE_BYTES)}`
  return `owsync/${shown}${tail}`
}
