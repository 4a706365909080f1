import {json, type Sql, type Tx} from '../postgres/sql.ts'
import {alertRules, type AlertMemory, type Notice, type Remembered} from '../telemetry/alert.ts'
import type {ChannelName} from '../telemetry/deliver.ts'

/** What is remembered of alerts, as a document of control state: whoever leads next goes on with it. */
export type AlertBook = {
  readonly alerts: AlertMemory
  /** What is still to be sent, oldest first. */
  readonly outbox: readonly Outgoing[]
}

export type Outgoing = {
  readonly notice: Notice
  /** Channels that have not taken it yet. */
  readonly to: readonly ChannelName[]
  /** The node that is to send it. */
  readonly by: string
}

/** The keys of the documents: what the leader has found, and what nodes say that see no leader. */
export const alertBooks = {leader: 'alerts.leader', nodes: 'alerts.nodes'} as const
export type AlertBookKey = (typeof alertBooks)[keyof typeof alertBooks]

const empty: AlertBook = {alerts: {}, outbox: []}

export async function readAlertBook(sql: Sql, key: AlertBookKey): Promise<AlertBook> {
  const [row] = await sql<{value: unknown}>`
    select value from sync_metadata.state where host_id = (select sync_metadata.my_host()) and key = ${key}`
  return bookOf(row?.value)
}

/**
 * Changes the book, one writer after the other: until the transaction ends nobody else decides.
 *
 * @param change is given the book as it is; the same object back means that nothing changes.
 * @returns the book as it is from now on.
 */
export async function amendAlertBook(
  tx: Tx,
  key: AlertBookKey,
  nodeId: string,
  change: (book: AlertBook) => AlertBook,
): Promise<AlertBook> {
  await tx`insert into sync_metadata.state (key, value, updated_by) values (${key}, ${json(empty)}, ${nodeId})
    on conflict (host_id, key) do nothing`
  const [row] = await tx<{value: unknown}>`
    select value from sync_metadata.state
    where host_id = (select sync_metadata.my_host()) and key = ${key} for update`
  const book = bookOf(row?.value)
  const changed = change(book)
  if (changed !== book)
    await tx`update sync_metadata.state
      set value = ${json(changed)}, version = version + 1, updated_at = now(), updated_by = ${nodeId}
      where host_id = (select sync_metadata.my_host()) and key = ${key}`
  return changed
}

/** Anyone with a token may have written the document: what makes no sense is left out. */
function bookOf(value: unknown): AlertBook {
  const {alerts, outbox} = (value ?? {}) as {alerts?: unknown; outbox?: unknown}
  return {
    alerts: Object.fromEntries(
      Object.entries(isObject(alerts) ? alerts : {}).filter((entry): entry is [string, Remembered] =>
        isRemembered(entry[1]),
      ),
    ),
    outbox: (Array.isArray(outbox) ? outbox : []).filter(isOutgoing),
  }
}

function isRemembered(value: unknown): value is Remembered {
  return (
    isObject(value) &&
    typeof value.rule === 'string' &&
    Object.hasOwn(alertRules, value.rule) &&
    typeof value.summary === 'string' &&
    isInstant(value.raisedAt) &&
    (value.recoveredAt === undefined || isInstant(value.recoveredAt))
  )
}

function isOutgoing(value: unknown): value is Outgoing {
  return (
    isObject(value) &&
    typeof value.by === 'string' &&
    Array.isArray(value.to) &&
    isObject(value.notice) &&
    isRemembered(value.notice) &&
    isInstant((value.notice as {at?: unknown}).at) &&
    ['raised', 'recovered'].includes(String((value.notice as {event?: unknown}).event))
  )
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

function isInstant(value: unknown): boolean {
  return typeof value === 'string' && !Number.isNaN(Date.parse(value))
}
