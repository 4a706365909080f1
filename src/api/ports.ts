import type {ClusterStatus} from '../state/overview.ts'
import type {Conflict, ConflictFilter} from '../state/conflicts.ts'
import type {ListedDeployment} from '../state/deployment-list.ts'
import type {SettingsChange} from '../state/deployment-settings.ts'
import type {Document} from '../state/documents.ts'
import type {Job, JobFilter, JobOptions, JobPage, JobType, TableProgress} from '../state/jobs.ts'
import type {Page} from '../state/page.ts'
import type {Expected} from '../state/version.ts'
import type {Choice, ConflictView} from '../sync/resolve.ts'
import type {Caller} from './tokens.ts'

/** What `GET /health` answers. */
export type Health = {
  readonly status: 'healthy' | 'degraded' | 'unhealthy'
  readonly node_id: string
  readonly role: string
  readonly is_leader: boolean
  readonly leader_id: string | null
  readonly cluster_name: string
  readonly uptime_seconds: number
  readonly last_sync: Date | null
  readonly version: string
  /** Why it is not healthy; names no client. */
  readonly reasons: readonly string[]
}

/** A deployment and the bytes that its schema takes; `null` until they have been looked up. */
export type DeploymentView = ListedDeployment & {readonly size_bytes: bigint | null}

/** What a client is registered with. */
export type NewDeployment = Omit<SettingsChange, 'sync_enabled'> & {
  readonly client_name: string
  readonly sync_enabled: boolean
}

/** What somebody asks to be done with a client. */
export type Asked = {readonly syncType: JobType; readonly options?: JobOptions}

/** One server-sent event. */
export type FeedEvent = {
  readonly id: string
  readonly event: 'snapshot' | 'job' | 'leader' | 'conflict' | 'deployment'
  readonly data: unknown
}

/**
 * What the API asks of the node it is part of. What changes something records it for `caller` in the audit log, in the
 * same transaction. A client's name may be spelled any way; one that this host does not have is an UnknownClientError.
 */
export type ApiPorts = {
  readonly health: () => Promise<Health>
  /** Why the node cannot do its part; empty when it can. */
  readonly faults: () => Promise<readonly string[]>
  readonly isLeader: () => boolean
  /** In Prometheus' text format; absent when metrics are not served. */
  readonly metrics?: {readonly contentType: string; readonly render: () => Promise<string>}
  readonly cluster: {
    status(): Promise<ClusterStatus>
    /** @returns the node that is to lead. */
    promote(
      asked: {readonly nodeId: string; readonly expectedLeader: string | undefined; readonly force: boolean},
      caller: Caller,
    ): Promise<string>
    /** @returns the node that is to take over. */
    stepDown(expectedLeader: string | undefined, caller: Caller): Promise<string>
  }
  readonly state: {
    get(key: string): Promise<(Document & {readonly isCached: boolean}) | undefined>
    put(key: string, value: unknown, expected: Expected, caller: Caller): Promise<Document>
    /** @param report names the job that told what would be written, where `change` switches to two_way. */
    change(
      key: string,
      change: SettingsChange,
      expected: Expected,
      caller: Caller,
      report?: string,
    ): Promise<Document>
  }
  readonly deployments: {
    list(query: {
      readonly status?: string
      readonly after?: string
      readonly limit: number
    }): Promise<DeploymentView[]>
    get(client: string): Promise<DeploymentView>
    register(settings: NewDeployment, caller: Caller): Promise<void>
    /** @param report as for a document. */
    change(
      client: string,
      change: SettingsChange,
      expected: Expected,
      caller: Caller,
      report?: string,
    ): Promise<void>
    /** Gives the client up; its tables and history stay. */
    remove(client: string, force: boolean, caller: Caller): Promise<void>
    /** @throws Error when the conflict rules are none. */
    checkRules(rules: Readonly<Record<string, unknown>>): void
  }
  readonly jobs: {
    enqueue(
      client: string,
      asked: Asked,
      caller: Caller,
    ): Promise<{readonly jobId: string; readonly isNew: boolean; readonly client: string}>
    list(filter: JobFilter & {readonly client?: string}, page: Page): Promise<JobPage>
    find(jobId: string): Promise<{readonly job: Job; readonly tables: readonly TableProgress[]} | undefined>
    cancel(
      jobId: string,
      caller: Caller,
    ): Promise<{readonly job: Job; readonly isCancelled: boolean} | undefined>
  }
  readonly conflicts: {
    list(
      filter: Omit<ConflictFilter, 'schemaName'> & {readonly client?: string},
      page: Page,
    ): Promise<{readonly conflicts: readonly Conflict[]; readonly next: string | null}>
    find(conflictId: string): Promise<ConflictView | undefined>
    resolve(conflictId: string, choice: Choice, caller: Caller): Promise<void>
    undo(conflictId: string, caller: Caller): Promise<void>
  }
  /**
   * Sends events until `signal` aborts: what was missed since `after` when that is known, else a snapshot first.
   *
   * @throws {RefusedError} when too many listen.
   */
  readonly events: (after: string | undefined, send: (event: FeedEvent) => void, signal: AbortSignal) => void
}
