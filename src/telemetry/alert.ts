/** What alerts are about. Each has its section in docs/operations.md: {@link sectionOf}. */
export const alertRules = {
  no_leader: {severity: 'critical', section: 'alert-no-leader'},
  database_unreachable: {severity: 'critical', section: 'alert-database-unreachable'},
  leader_flapping: {severity: 'error', section: 'alert-leader-flapping'},
  repeated_failure: {severity: 'error', section: 'alert-repeated-failure'},
  sync_lag: {severity: 'error', section: 'alert-sync-lag'},
  quarantine: {severity: 'error', section: 'alert-quarantine'},
  rows_quarantined: {severity: 'warning', section: 'alert-rows-quarantined'},
  manual_conflict: {severity: 'warning', section: 'alert-manual-conflict'},
  conflict_rate: {severity: 'warning', section: 'alert-conflict-rate'},
  conflict_notice: {severity: 'warning', section: 'alert-conflict-notice'},
  verification_difference: {severity: 'critical', section: 'alert-verification-difference'},
  target_size: {severity: 'warning', section: 'alert-target-size'},
} as const satisfies Readonly<Record<string, {readonly severity: Severity; readonly section: string}>>

export type AlertRule = keyof typeof alertRules
export type Severity = 'critical' | 'error' | 'warning'

/** Something that is wrong now. */
export type Cause = {
  readonly rule: AlertRule
  /** What it concerns: a client, a node, or neither when it is the cluster. With the rule it says which cause it is. */
  readonly client?: string | undefined
  readonly node?: string | undefined
  /** A sentence for a person, without what is in rows. */
  readonly summary: string
}

/** One message: that something is wrong, or that it is not any more. */
export type Notice = {
  readonly event: 'raised' | 'recovered'
  readonly rule: AlertRule
  readonly client?: string | undefined
  readonly node?: string | undefined
  readonly summary: string
  /** ISO 8601. */
  readonly raisedAt: string
  readonly at: string
}

/** An alert that has been raised and not been forgotten yet. */
export type Remembered = {
  readonly rule: AlertRule
  readonly client?: string | undefined
  readonly node?: string | undefined
  readonly summary: string
  readonly raisedAt: string
  /** Absent while it is open. */
  readonly recoveredAt?: string
}

/** By {@link keyOf}. JSON: it is kept in Postgres and outlives whoever leads. */
export type AlertMemory = Readonly<Record<string, Remembered>>

/** A cause that comes back sooner than this after its recovery is not told: it is the same trouble, coming and going. */
export const COOL_DOWN_MS = 600_000

/** @returns the name of a cause, the same for as long as it lasts and each time that it comes back. */
export function keyOf({rule, client, node}: Pick<Cause, 'rule' | 'client' | 'node'>): string {
  const subject = client ?? node
  return subject === undefined ? rule : `${rule}/${subject}`
}

/** @returns where docs/operations.md says what to do. */
export function sectionOf({rule}: Pick<Cause, 'rule'>): string {
  return `docs/operations.md#${alertRules[rule].section}`
}

/**
 * The whole policy of what is told: each cause once, its end once, and nothing of one that comes and goes within the
 * cool-down. Pure.
 *
 * @param causes all that is wrong now; what is remembered as open and not among them has recovered.
 * @returns the notices to send, and what to remember from now on.
 */
export function decideAlerts(
  memory: AlertMemory,
  causes: readonly Cause[],
  now: Date,
  coolDownMs = COOL_DOWN_MS,
): {readonly memory: AlertMemory; readonly notices: readonly Notice[]} {
  const at = now.toISOString()
  const next: Record<string, Remembered> = {}
  const notices: Notice[] = []
  for (const {rule, client, node, summary} of causes) {
    const key = keyOf({rule, client, node})
    const known = memory[key]
    if (known !== undefined && isKept(known, now, coolDownMs)) {
      next[key] = known
      continue
    }
    const what = {rule, ...(client !== undefined && {client}), ...(node !== undefined && {node}), summary}
    next[key] = {...what, raisedAt: at}
    notices.push({event: 'raised', ...what, raisedAt: at, at})
  }
  for (const [key, known] of Object.entries(memory)) {
    if (key in next) continue
    if (known.recoveredAt === undefined) {
      next[key] = {...known, recoveredAt: at}
      notices.push({event: 'recovered', ...known, at})
    } else if (isKept(known, now, coolDownMs)) next[key] = known
  }
  return {memory: next, notices}
}

/** Open, or recovered so short a time ago that its return is not told. */
function isKept({recoveredAt}: Remembered, now: Date, coolDownMs: number): boolean {
  return recoveredAt === undefined || now.getTime() - Date.parse(recoveredAt) < coolDownMs
}

/** @returns those alerts that are open, oldest first. */
export function openAlerts(memory: AlertMemory): readonly Remembered[] {
  return Object.values(memory)
    .filter(({recoveredAt}) => recoveredAt === undefined)
    .sort((a, b) => a.raisedAt.localeCompare(b.raisedAt))
}
