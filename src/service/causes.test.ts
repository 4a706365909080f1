import assert from 'node:assert/strict'
import {describe, test} from 'vitest'
import type {DeploymentCondition} from '../state/conditions.ts'
import {keyOf} from '../telemetry/alert.ts'
import {causesOf, dueBySchedule, standardLimits, type DueInMs, type Situation} from './causes.ts'

const well: DeploymentCondition = {
  deploymentId: '5f0c1f2e-8f34-4a83-9f0e-2b1b0f0f0f0f',
  client: 'acme',
  status: 'active',
  statusReason: null,
  isEnabled: true,
  isLoading: false,
  syncInterval: 300,
  syncSchedule: null,
  uncheckedSeconds: 200,
  hasSynced: true,
  behindSeconds: 0,
  syncFailures: 0,
  verifyFailures: 0,
  lastErrorCode: null,
  quarantinedRows: 0,
  pendingConflicts: 0,
  recentConflicts: 0,
  conflictLimit: {threshold: 10, windowMinutes: 10},
  conflictsToTell: 0,
  differences: 0n,
  lastVerifiedAt: null,
}
const quiet: Situation = {
  deployments: [],
  cluster: {now: new Date(), takeovers: 1},
  databaseBytes: 100e6,
  sizeLimitBytes: undefined,
}

const keysOf = (situation: Situation, due: DueInMs = dueBySchedule) =>
  causesOf(situation, standardLimits, due).map(keyOf)

describe('of a deployment', () => {
  for (const [what, changes, expected] of [
    ['all is well', {}, []],
    ['two attempts have failed', {syncFailures: 2}, []],
    ['three attempts have failed', {syncFailures: 3}, ['repeated_failure/acme']],
    ['three verifications have failed', {verifyFailures: 3}, ['repeated_failure/acme']],
    ['it failed and was paused', {syncFailures: 9, status: 'paused'}, []],
    ['it failed and was disabled', {syncFailures: 9, isEnabled: false}, []],
    ['its newest version waits for ten minutes', {behindSeconds: 600}, []],
    ['its newest version waits for longer', {behindSeconds: 601}, ['sync_lag/acme']],
    ['its first load is under way', {behindSeconds: 3_000, isLoading: true}, []],
    ['it is late and paused', {behindSeconds: 3_000, status: 'paused'}, []],
    ['nobody has looked for three intervals of five minutes', {uncheckedSeconds: 901}, ['sync_lag/acme']],
    ['nobody has looked for two intervals and more', {uncheckedSeconds: 899}, []],
    ['an hourly one is two hours late', {syncInterval: 3_600, uncheckedSeconds: 10_700}, []],
    ['an hourly one is later than that', {syncInterval: 3_600, uncheckedSeconds: 10_900}, ['sync_lag/acme']],
    [
      'a live one was looked at twelve minutes ago',
      {syncInterval: null, syncSchedule: 'live', uncheckedSeconds: 720},
      ['sync_lag/acme'],
    ],
    [
      'a nightly one was run this night',
      {syncInterval: null, syncSchedule: 'daily', uncheckedSeconds: 60},
      [],
    ],
    [
      'a nightly one has missed its night',
      {syncInterval: null, syncSchedule: 'daily', uncheckedSeconds: 200_000},
      ['sync_lag/acme'],
    ],
    ['its schedule is none', {syncInterval: null, syncSchedule: 'whenever', uncheckedSeconds: 200_000}, []],
    ['nobody has ever asked for it', {syncInterval: null, uncheckedSeconds: 1e6, hasSynced: false}, []],
    [
      'it was registered a while ago and never run',
      {uncheckedSeconds: 700, hasSynced: false},
      ['sync_lag/acme'],
    ],
    ['it was registered just now', {uncheckedSeconds: 60, hasSynced: false}, []],
    ['a cut is held back', {status: 'quarantined', behindSeconds: 3_000}, ['quarantine/acme']],
    ['rows cannot be applied', {quarantinedRows: 1}, ['rows_quarantined/acme']],
    ['a conflict waits', {pendingConflicts: 1}, ['manual_conflict/acme']],
    ['ten conflicts in the window', {recentConflicts: 10}, []],
    ['eleven conflicts in the window', {recentConflicts: 11}, ['conflict_rate/acme']],
    [
      'three conflicts, of which two are many',
      {recentConflicts: 3, conflictLimit: {threshold: 2, windowMinutes: 60}},
      ['conflict_rate/acme'],
    ],
    ['a rule asks that people are told', {conflictsToTell: 1}, ['conflict_notice/acme']],
    ['a verification found something', {differences: 1n}, ['verification_difference/acme']],
    [
      'everything at once',
      {syncFailures: 3, behindSeconds: 700, pendingConflicts: 20, recentConflicts: 20, quarantinedRows: 2},
      ['repeated_failure', 'sync_lag', 'rows_quarantined', 'manual_conflict', 'conflict_rate'].map(
        rule => `${rule}/acme`,
      ),
    ],
  ] satisfies [string, Partial<DeploymentCondition>, string[]][])
    // prettier-ignore
    test(`when ${what}: ${expected.join(', ') || 'nothing'}`, () => {
      assert.deepEqual(keysOf({...quiet, deployments: [{...well, ...changes}]}), expected)
    })

  test('schedules by time of day are what the scheduler says they are', () => {
    const nightly = {...well, syncInterval: null, syncSchedule: 'daily', uncheckedSeconds: 80_000}
    assert.deepEqual(
      keysOf({...quiet, deployments: [nightly]}, () => 3_600_000),
      [],
    )
    assert.deepEqual(
      keysOf({...quiet, deployments: [nightly]}, () => -601_000),
      ['sync_lag/acme'],
    )
  })
})

describe('of the cluster', () => {
  for (const [what, changes, expected] of [
    ['a rolling update moves the lease three times', {cluster: {now: new Date(), takeovers: 3}}, []],
    ['the lease moves four times', {cluster: {now: new Date(), takeovers: 4}}, ['leader_flapping']],
    ['nobody knows how large the database may be', {databaseBytes: 1e15}, []],
    ['the database is at 79 %', {databaseBytes: 79, sizeLimitBytes: 100}, []],
    ['the database is at 80 %', {databaseBytes: 80, sizeLimitBytes: 100}, ['target_size']],
  ] satisfies [string, Partial<Situation>, string[]][])
    test(`when ${what}: ${expected.join(', ') || 'nothing'}`, () => {
      assert.deepEqual(keysOf({...quiet, ...changes}), expected)
    })
})
