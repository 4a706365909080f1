import assert from 'node:assert/strict'
import {randomBytes} from 'node:crypto'
import {afterAll, beforeAll, describe, test} from 'vitest'
import {withChanges} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {generatePassword, scramVerifier} from '../src/postgres/scram.ts'
import {raw, type Pool} from '../src/postgres/sql.ts'
import {testDatabase, type TestDatabase} from './database.ts'
import {evolve, testClient, testHost, type TestHost} from './host.ts'

// Promise 5: a node holds one host's role, and that role can do nothing to anyone else, nor remove anything of its own.
// Every statement here runs as that role. Each refusal is paired with the right that is missing: once an admin gives
// it, the same statement works, so it was not a mistake in the statement that refused it.

let db: TestDatabase
let a: TestHost
let b: TestHost
/** What statements below speak of, by name. */
const names: Record<string, string> = {}

beforeAll(async () => {
  db = await testDatabase()
  a = await testHost(db, 'host-a')
  b = await testHost(db, 'host-b')
  names['A'] = a.role
  names['B'] = b.role
  for (const [host, client] of [
    [a, 'alpha'],
    [b, 'beta'],
  ] as const) {
    const id = await testClient(host, client)
    names[`${client}_id`] = id
    await evolve(
      host,
      id,
      {op: 'create_table', table: 't', columns: [{name: 'id', type: 'text'}]},
      {op: 'finish_table', table: 't'},
    )
    await host`insert into ${host(client, 't')} (id, _sync_key) values ('1', '1')`
    names[`${client}_job`] = await seed(host, id)
    const [row] = await host<{id: string}>`select sync_metadata.my_host() as id`
    names[`${client}_host`] = row!.id
  }
})

afterAll(async () => {
  await a.end()
  await b.end()
  await db[Symbol.asyncDispose]()
})

/** A row in every table of the control schema that a host writes. @returns the job's id. */
async function seed(host: TestHost, id: string): Promise<string> {
  await host`select * from sync_metadata.acquire_lease(${`${host.cluster}-node-a`}, 60000)`
  const [job] = await host<{id: string}>`
    insert into sync_metadata.sync_jobs (deployment_id) values (${id}) returning job_id as id`
  await host`insert into sync_metadata.sync_jobs (deployment_id, status) values (${id}, 'success')`
  await host`insert into sync_metadata.sync_progress (job_id, table_name) values (${job!.id}, 't')`
  await host`insert into sync_metadata.sync_nodes (node_id, role) values (${`${host.cluster}-node-a`}, 'node-a')`
  await host`insert into sync_metadata.state (key, value) values ('k', '1')`
  await host`insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type, source_data)
    values (${id}, 't', '1', 'drift', '{"secret": 1}')`
  await host`insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason)
    values (${id}, 't', '1', 'X', 'x')`
  await host`insert into sync_metadata.source_schemas
    (deployment_id, version, first_generation, objects, pragmas, tables) values (${id}, 1, 1, '[]', '{}', '[]')`
  await host`insert into sync_metadata.verifications (deployment_id, generation) values (${id}, 1)`
  await host`insert into sync_metadata.audit_log (actor, action) values ('someone', 'something')`
  return job!.id
}

/** What is refused; the right that would allow it; how that right is taken back. */
type Refusal = readonly [statement: string, lift: string, restore: string]

const privilege = (right: string, on: string): [string, string] => [
  `grant ${right} on ${on} to $A`,
  `revoke ${right} on ${on} from $A`,
]
// An owner that gives a table away loses what it had been granted before.
const ownership = (table: string): [string, string] => [
  `alter table ${table} owner to $A; grant create on schema alpha to $A`,
  `alter table ${table} owner to sync_owner; revoke create on schema alpha from $A;
   grant select, insert, update on ${table} to $A`,
]
const controlOwnership: [string, string] = [
  'alter table sync_metadata.state owner to $A',
  'alter table sync_metadata.state owner to sync_owner',
]
const rls = (table: string): [string, string] => [
  `alter table sync_metadata.${table} disable row level security`,
  `alter table sync_metadata.${table} enable row level security`,
]
/** Both the privilege on the column and the policy stand in the way. */
const both = (right: string, table: string): [string, string] => {
  const [grant, revoke] = privilege(right, `sync_metadata.${table}`)
  const [off, on] = rls(table)
  return [`${grant}; ${off}`, `${revoke}; ${on}`]
}
const beta = (right: string): [string, string] => [
  `grant usage on schema beta to $A; grant ${right} on beta.t to $A`,
  `revoke ${right} on beta.t from $A; revoke usage on schema beta from $A`,
]

describe('a host removes and makes nothing', () => {
  refused([
    ['delete from alpha.t', ...privilege('delete', 'alpha.t')],
    ['truncate alpha.t', ...privilege('truncate', 'alpha.t')],
    ['drop table alpha.t cascade', ...ownership('alpha.t')],
    ['alter table alpha.t add column x int', ...ownership('alpha.t')],
    ['alter table alpha.t rename to u', ...ownership('alpha.t')],
    ['create index on alpha.t (id)', ...ownership('alpha.t')],
    [
      'drop view alpha.live_t',
      'alter view alpha.live_t owner to $A',
      'alter view alpha.live_t owner to sync_owner; grant select on alpha.live_t to $A',
    ],
    [
      'create trigger x before insert on alpha.t for each row execute function suppress_redundant_updates_trigger()',
      ...privilege('trigger', 'alpha.t'),
    ],
    ['create table alpha.evil (x int)', ...privilege('create', 'schema alpha')],
    [
      "create function alpha.evil() returns int language sql as 'select 1'",
      ...privilege('create', 'schema alpha'),
    ],
    ['create table sync_metadata.evil (x int)', ...privilege('create', 'schema sync_metadata')],
    [
      "create function sync_metadata.my_host(int) returns int language sql as 'select 1'",
      ...privilege('create', 'schema sync_metadata'),
    ],
    ['create table public.evil (x int)', ...privilege('create', 'schema public')],
    ['create schema evil', ...privilege('create', 'database $DB')],
    [
      'alter schema alpha rename to omega',
      'alter schema alpha owner to $A; grant create on database $DB to $A',
      'alter schema alpha owner to sync_owner; grant usage on schema alpha to $A; revoke create on database $DB from $A',
    ],
    [
      'drop schema alpha cascade',
      'alter schema alpha owner to $A',
      'alter schema alpha owner to sync_owner; grant usage on schema alpha to $A',
    ],
    ['create role evil', 'alter role $A createrole', 'alter role $A nocreaterole'],
    ['alter role $A connection limit 1000', 'alter role $A superuser', 'alter role $A nosuperuser'],
    [
      "copy alpha.t to program 'cat >/dev/null'",
      'grant pg_execute_server_program to $A',
      'revoke pg_execute_server_program from $A',
    ],
    ['delete from sync_metadata.sync_jobs', ...privilege('delete', 'sync_metadata.sync_jobs')],
    ['delete from sync_metadata.audit_log', ...privilege('delete', 'sync_metadata.audit_log')],
    ['delete from sync_metadata.conflict_log', ...privilege('delete', 'sync_metadata.conflict_log')],
    [
      'delete from sync_metadata.client_deployments',
      ...privilege('delete', 'sync_metadata.client_deployments'),
    ],
    ['truncate sync_metadata.cache_events', ...privilege('truncate', 'sync_metadata.cache_events')],
    ["update sync_metadata.audit_log set actor = 'me'", ...privilege('update', 'sync_metadata.audit_log')],
    [
      "insert into sync_metadata.audit_log (actor, action, db_role) values ('x', 'x', 'postgres')",
      ...privilege('insert', 'sync_metadata.audit_log'),
    ],
    [
      "insert into sync_metadata.audit_log (actor, action, recorded_at) values ('x', 'x', '1999-01-01')",
      ...privilege('insert', 'sync_metadata.audit_log'),
    ],
    ['alter table sync_metadata.state disable row level security', ...controlOwnership],
    ['drop policy host_owns on sync_metadata.state', ...controlOwnership],
  ])
})

describe('a host changes no fact that only a function may change', () => {
  refused([
    [
      'update sync_metadata.client_deployments set generation = 99',
      ...privilege('update', 'sync_metadata.client_deployments'),
    ],
    [
      'update sync_metadata.client_deployments set cut_id = gen_random_uuid()',
      ...privilege('update', 'sync_metadata.client_deployments'),
    ],
    [
      "update sync_metadata.client_deployments set load_position = '{}'",
      ...privilege('update', 'sync_metadata.client_deployments'),
    ],
    [
      "update sync_metadata.client_deployments set client_name = 'x'",
      ...privilege('update', 'sync_metadata.client_deployments'),
    ],
    [
      "insert into sync_metadata.client_deployments (host_id, client_name, schema_name) values (sync_metadata.my_host(), 'x', 'beta_x')",
      ...privilege('insert', 'sync_metadata.client_deployments'),
    ],
    [
      'update sync_metadata.leader_election set epoch = 99',
      ...privilege('update', 'sync_metadata.leader_election'),
    ],
    [
      "update sync_metadata.leader_election set expires_at = 'infinity'",
      ...privilege('update', 'sync_metadata.leader_election'),
    ],
    [
      'select 1 from sync_metadata.leader_election for update',
      ...privilege('update', 'sync_metadata.leader_election'),
    ],
    ["update sync_metadata.hosts set cluster_name = 'x'", ...privilege('update', 'sync_metadata.hosts')],
    [
      "insert into sync_metadata.host_roles (db_role, host_id) values ('evil', '$alpha_host')",
      ...privilege('insert', 'sync_metadata.host_roles'),
    ],
    [
      'update sync_metadata.host_roles set valid_until = null',
      ...privilege('update', 'sync_metadata.host_roles'),
    ],
    [
      "update sync_metadata.schema_migrations set sha256 = ''",
      'grant update on sync_metadata.schema_migrations to $A',
      'revoke update on sync_metadata.schema_migrations from $A',
    ],
  ])
})

describe('a host makes nothing of its own another’s', () => {
  refused([
    [
      "update sync_metadata.client_deployments set host_id = '$beta_host'",
      ...both('update', 'client_deployments'),
    ],
    [
      "update sync_metadata.client_deployments set schema_name = 'beta_x' where client_name = 'alpha'",
      ...privilege('update', 'sync_metadata.client_deployments'),
    ],
    [
      "update sync_metadata.state set host_id = '$beta_host', key = 'stolen' where host_id = '$alpha_host'",
      ...both('update', 'state'),
    ],
    [
      "update sync_metadata.sync_jobs set deployment_id = '$beta_id', status = 'failed'",
      ...both('update', 'sync_jobs'),
    ],
    ["update sync_metadata.sync_nodes set node_id = 'host-b-node-z'", ...both('update', 'sync_nodes')],
    ["update sync_metadata.conflict_log set deployment_id = '$beta_id'", ...both('update', 'conflict_log')],
    [
      "insert into sync_metadata.state (host_id, key, value) values ('$beta_host', 'evil', '1')",
      ...rls('state'),
    ],
    [
      "insert into sync_metadata.sync_nodes (host_id, node_id, role) values ('$beta_host', 'host-b-node-x', 'x')",
      ...rls('sync_nodes'),
    ],
    [
      "insert into sync_metadata.sync_nodes (node_id, role) values ('host-b-node-x', 'x')",
      ...rls('sync_nodes'),
    ],
    [
      "insert into sync_metadata.sync_jobs (deployment_id, status) values ('$beta_id', 'failed')",
      ...rls('sync_jobs'),
    ],
    [
      "insert into sync_metadata.sync_progress (job_id, table_name) values ('$beta_job', 'x')",
      ...rls('sync_progress'),
    ],
    [
      "insert into sync_metadata.conflict_log (deployment_id, table_name, record_key, conflict_type) values ('$beta_id', 't', '1', 'drift')",
      ...rls('conflict_log'),
    ],
    [
      "insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason) values ('$beta_id', 't', '2', 'X', 'x')",
      ...rls('row_quarantine'),
    ],
    [
      "insert into sync_metadata.row_quarantine (deployment_id, table_name, record_key, code, reason) values ('$beta_id', 't', '1', 'X', 'x') on conflict do nothing",
      ...rls('row_quarantine'),
    ],
    [
      "insert into sync_metadata.source_schemas (deployment_id, version, first_generation, objects, pragmas, tables) values ('$beta_id', 2, 1, '[]', '{}', '[]')",
      ...rls('source_schemas'),
    ],
    [
      "insert into sync_metadata.verifications (deployment_id, generation) values ('$beta_id', 1)",
      ...rls('verifications'),
    ],
    [
      "insert into sync_metadata.cache_events (host_id, key) values ('$beta_host', 'x')",
      ...rls('cache_events'),
    ],
    [
      "insert into sync_metadata.audit_log (host_id, actor, action) values ('$beta_host', 'x', 'x')",
      ...rls('audit_log'),
    ],
  ])
})

describe('a host sees and touches no other client’s schema', () => {
  refused([
    ['select * from beta.t', ...beta('select')],
    [
      'select * from beta.live_t',
      'grant usage on schema beta to $A; grant select on beta.t, beta.live_t to $A',
      'revoke select on beta.t, beta.live_t from $A; revoke usage on schema beta from $A',
    ],
    ['copy beta.t to stdout', ...beta('select')],
    // There it is an editor, whose inserts and deletes are more than they look.
    [
      "insert into beta.t (_sync_key) values ('evil')",
      `${beta('select, insert, update')[0]}; insert into sync_metadata.table_keys values ('$beta_id', 'beta', 't', '{id}', '{text}')`,
      `${beta('select, insert, update')[1]}; delete from sync_metadata.table_keys where schema_name = 'beta'`,
    ],
    ["update beta.t set id = 'evil'", ...beta('update')],
    ['delete from beta.t', ...beta('select, update, delete')],
    ['lock table beta.t in access share mode', ...beta('select')],
  ])
})

describe('a host becomes nobody else', () => {
  refused([
    [
      'set role sync_owner',
      'revoke $A from sync_owner; grant sync_owner to $A',
      'revoke sync_owner from $A; grant $A to sync_owner',
    ],
    ['set role $B', 'grant $B to $A', 'revoke $B from $A'],
    ['set role postgres', 'alter role $A superuser', 'alter role $A nosuperuser'],
    [
      'grant sync_owner to $A',
      'revoke $A from sync_owner; alter role $A superuser',
      'alter role $A nosuperuser; revoke sync_owner from $A; grant $A to sync_owner',
    ],
  ])

  test('granting on what it has is without effect', async () => {
    await run(a, 'grant select on alpha.t to $B')
    assert.equal(await attempt(b, 'select 1 from alpha.t'), '42501')
    await run(db, 'grant usage on schema alpha to $B')
    assert.equal(await attempt(b, 'select 1 from alpha.t'), '42501')
    await run(db, 'revoke usage on schema alpha from $B')
  })

  test('set session authorization is refused', async () => {
    assert.equal(await attempt(a, 'set session authorization $B'), '42501')
  })

  for (const forged of [
    "set local app.host = '$beta_host'",
    "set local sync_metadata.host = '$beta_host'",
    "set local application_name = 'owsync/host-b-node-a/99'",
    'set local search_path = pg_temp, beta, sync_metadata',
    'set local role sync_service',
  ]) {
    test(`"${forged}" shows nothing more`, async () => {
      const seen = await a.begin(async tx => {
        await tx`${raw(named(forged))}`
        return tx`select host_id from sync_metadata.hosts`
      })
      assert.deepEqual(seen, [{host_id: names['alpha_host']}])
    })
  }

  test('switching row security off shows nothing at all', async () => {
    const statement = 'set local row_security = off; select 1 from sync_metadata.hosts'
    assert.equal(await attempt(a, statement), '42501')
  })

  test('the role of another host, were it ever granted, still sees as itself', async () => {
    await run(db, 'grant $B to $A')
    try {
      const seen = await a.begin(async tx => {
        await tx`set local role ${tx(b.role)}`
        return tx`select sync_metadata.my_host() as host`
      })
      assert.deepEqual(seen, [{host: names['alpha_host']}])
    } finally {
      await run(db, 'revoke $B from $A')
    }
  })
})

describe('row level security', () => {
  test('is on for every table of the control schema', async () => {
    assert.deepEqual(
      await db`select relname from pg_class where relnamespace = 'sync_metadata'::regnamespace
        and relkind in ('r', 'p') and not relrowsecurity`,
      [],
    )
  })

  test('shows a host its own rows alone, in every table and view', async () => {
    for (const name of await relations()) {
      const [all] = await db<{n: number}>`select count(*)::int as n from ${db('sync_metadata', name)}`
      // For definer functions alone.
      if (name === 'table_keys') continue
      assert.ok(all!.n > 0 || name === 'access_grants', `${name} has rows to hide`)
      if (['schema_migrations', 'access_grants'].includes(name)) continue
      const text = JSON.stringify(await a`select t::text from ${a('sync_metadata', name)} t`)
      assert.doesNotMatch(text, new RegExp(`host-b|beta|${names['beta_id']!}|${names['beta_host']!}`), name)
      const [own] = await a<{n: number}>`select count(*)::int as n from ${a('sync_metadata', name)}`
      assert.ok(own!.n > 0 && own!.n < all!.n, `${name}: some of all rows`)
    }
  })

  test('lets an update of another’s rows find none', async () => {
    for (const [table, column] of [
      ['state', 'updated_by'],
      ['sync_jobs', 'error_message'],
      ['conflict_log', 'notes'],
      ['client_deployments', 'status_reason'],
      ['sync_nodes', 'version'],
      ['hosts', 'ip_address'],
    ] as const) {
      const [theirs] = await b<{n: number}>`select count(*)::int as n from ${b('sync_metadata', table)}`
      const [all] = await db<{n: number}>`select count(*)::int as n from ${db('sync_metadata', table)}`
      const touched = await a`update ${a('sync_metadata', table)} set ${a(column)} = 'evil' returning 1`
      assert.equal(touched.length, all!.n - theirs!.n, table)
    }
  })

  test('does not let a host know whether another’s row exists', async () => {
    const insert = (id: string) => a`insert into sync_metadata.source_schemas
      (deployment_id, version, first_generation, objects, pragmas, tables) values (${id}, 1, 1, '[]', '{}', '[]')`
    const message = async (id: string) =>
      insert(id).then(
        () => 'inserted',
        (error: unknown) => String(error),
      )
    assert.equal(await message(names['beta_id']!), await message('00000000-0000-0000-0000-000000000000'))
  })

  test('ends with the role: one that is no longer valid sees nothing', async () => {
    await run(db, "update sync_metadata.host_roles set valid_until = now() where db_role = '$A'")
    try {
      assert.deepEqual(await a`select 1 from sync_metadata.client_deployments`, [])
      assert.equal(await attempt(a, 'select sync_metadata.assert_lease(1)'), 'SYNC_NOT_YOURS')
    } finally {
      await run(db, "update sync_metadata.host_roles set valid_until = null where db_role = '$A'")
    }
  })
})

describe('the functions that do more than their caller may', () => {
  test('are these, and a host may call no other', async () => {
    const rows = await a<{name: string}>`
      select proname as name from pg_proc
      where pronamespace = 'sync_metadata'::regnamespace and has_function_privilege(oid, 'execute') order by 1`
    assert.deepEqual(
      rows.map(({name}) => name),
      [
        'acquire_lease',
        'advance_generation',
        'assert_lease',
        'channel_of',
        'count_marks',
        'detach_deployment',
        'end_older_sessions',
        'end_rotated_sessions',
        'epoch_of',
        'erase_row',
        'evolve_schema',
        'forget_run',
        'marked_tables',
        'my_cluster',
        'my_host',
        'prefer_node',
        'purge_history',
        'purge_tombstones',
        'record_load_step',
        'register_deployment',
        'release_lease',
        'renew_lease',
        'schema_of',
        'set_paused',
        'step_down',
      ],
    )
  })

  test('belong to sync_owner, with a path of their own, and to no PUBLIC', async () => {
    assert.deepEqual(
      await db`select proname from pg_proc
        where pronamespace = 'sync_metadata'::regnamespace and (
          pg_get_userbyid(proowner) <> 'sync_owner'
          or not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)
          or has_function_privilege('public', oid, 'execute'))`,
      [],
    )
  })

  for (const call of [
    "advance_generation('$ID', 0, gen_random_uuid(), 1, '{}')",
    "record_load_step('$ID', gen_random_uuid(), 1, '{}')",
    `evolve_schema('$ID', '[{"op": "add_column", "table": "t", "column": "evil", "type": "text"}]')`,
    "evolve_schema('$ID', '[]')",
    "purge_tombstones('$ID', '0')",
    "erase_row('$ID', 't', '1')",
    "count_marks('$ID')",
  ]) {
    test(`${call.replace('$ID', '…')} is not for another’s deployment, nor tells whether there is one`, async () => {
      const message = (id: string) =>
        a`select sync_metadata.${raw(call.replace('$ID', id))}`.then(
          () => assert.fail('it was not refused'),
          (error: unknown) => `${(error as {code: string}).code} ${String(error).replace(id, 'ID')}`,
        )
      const refusal = await message(names['beta_id']!)
      assert.match(refusal, /^SYNC_NOT_YOURS/)
      assert.equal(refusal, await message('00000000-0000-0000-0000-000000000000'))
      // One's own is taken, or fails for a reason of its own.
      const own = await attempt(a, `select sync_metadata.${call.replace('$ID', '$alpha_id')}`)
      assert.notEqual(own, 'SYNC_NOT_YOURS')
    })
  }

  test('an operation reaches no table outside its schema', async () => {
    for (const table of [
      'beta.t',
      '"beta"."t"',
      '../beta/t',
      'beta"."t',
      'sync_metadata.hosts',
      'pg_class',
    ]) {
      await assert.rejects(evolve(a, names['alpha_id']!, {op: 'mark_dropped', table}), {code: 'OS006'}, table)
    }
  })

  test('run none of the caller’s code: temporary types do not stand in for real ones', async () => {
    // Each domain's check runs as whoever casts to it.
    const trap = `
      create function pg_temp.spring() returns boolean language plpgsql as
        $f$ begin if current_user = 'sync_owner' then raise exception 'sprung'; end if; return true; end $f$;
      create domain pg_temp.text as pg_catalog.text check (pg_temp.spring());
      create domain pg_temp.uuid as pg_catalog.uuid check (pg_temp.spring());
      create domain pg_temp.jsonb as pg_catalog.jsonb check (pg_temp.spring());
      create temp table pg_class (oid oid, relname name, relnamespace oid, relkind "char");
      create temp table client_deployments (deployment_id pg_catalog.uuid);
      create function pg_temp.lower(pg_catalog.text) returns pg_catalog.text language plpgsql as
        $f$ begin perform pg_temp.spring(); return $1; end $f$;
      set local search_path = pg_temp, pg_catalog`
    const spring = () =>
      a
        .begin(async tx => {
          await tx`${raw(trap)}`
          await tx`select sync_metadata.register_deployment('trapped')`
          await tx`select sync_metadata.evolve_schema(${names['alpha_id']}, '[{"op": "create_table", "table": "u",
            "columns": [{"name": "x", "type": "text"}]}, {"op": "finish_table", "table": "u"}]')`
          await tx`select * from sync_metadata.acquire_lease('host-a-node-a', 60000)`
          await tx`select sync_metadata.purge_tombstones(${names['alpha_id']}, '0')`
          throw new Error('undo')
        })
        // What a trap raises arrives as the cause of a refusal.
        .catch((error: unknown) => `${String(error)} ${String((error as Error).cause)}`)
    assert.match(await spring(), /undo/)
    // The path that leaves the temporary schema out searches it first: there the trap springs.
    await db`alter function sync_metadata.register_deployment set search_path = ''`
    try {
      assert.match(await spring(), /sprung/)
    } finally {
      await db`alter function sync_metadata.register_deployment set search_path = pg_catalog, pg_temp`
    }
  })
})

describe('everyone else', () => {
  for (const group of [undefined, 'anon', 'authenticated', 'service_role'] as const) {
    test(`${group ?? 'a role with nothing but PUBLIC'} sees and calls nothing`, async () => {
      if (group)
        await db`do $$ begin create role ${db(group)}; exception when duplicate_object then null; end $$`
      await using plain = await login(group)
      const refusals = [
        'select 1 from sync_metadata.hosts',
        'select 1 from sync_metadata.v_sync_status',
        'select sync_metadata.my_host()',
        "select sync_metadata.register_deployment('evil')",
        'select 1 from alpha.t',
        'select 1 from alpha.live_t',
        'create table sync_metadata.x ()',
        'create table alpha.x ()',
      ]
      for (const statement of refusals) assert.equal(await attempt(plain, statement), '42501', statement)
      const able = await plain`
        select n.nspname, c.relname::text as name from pg_class c join pg_namespace n on n.oid = c.relnamespace
        where n.nspname in ('sync_metadata', 'alpha', 'beta') and c.relkind in ('r', 'v')
          and (has_any_column_privilege(c.oid, 'select, insert, update, references')
            or has_table_privilege(c.oid, 'delete, truncate, trigger'))
        union all
        select n.nspname, p.proname from pg_proc p join pg_namespace n on n.oid = p.pronamespace
        where n.nspname in ('sync_metadata', 'alpha', 'beta') and has_function_privilege(p.oid, 'execute')
        union all
        select nspname, 'usage' from pg_namespace
        where nspname in ('sync_metadata', 'alpha', 'beta') and has_schema_privilege(oid, 'usage, create')`
      assert.deepEqual(able, [])
    })
  }

  test('nothing of ours is in public', async () => {
    assert.deepEqual(
      await db`select relname from pg_class where relnamespace = 'public'::regnamespace
        union all select proname from pg_proc where pronamespace = 'public'::regnamespace`,
      [],
    )
  })

  test('a viewer sees all hosts in every view, and no row of a client', async () => {
    await using viewer = await login('sync_viewer')
    for (const view of (await relations()).filter(name => name.startsWith('v_'))) {
      const [seen] = await viewer<{
        n: number
      }>`select count(*)::int as n from ${viewer('sync_metadata', view)}`
      const [all] = await db<{n: number}>`select count(*)::int as n from ${db('sync_metadata', view)}`
      assert.equal(seen!.n, all!.n, view)
    }
    for (const statement of [
      'select 1 from alpha.t',
      'select 1 from alpha.live_t',
      'select source_data from sync_metadata.conflict_log',
      'select record_key from sync_metadata.conflict_log',
      'select reason from sync_metadata.row_quarantine',
      'select differences from sync_metadata.verifications',
      'select objects from sync_metadata.source_schemas',
      'select 1 from sync_metadata.access_grants',
      "update sync_metadata.hosts set status = 'offline'",
      "insert into sync_metadata.state (key, value) values ('x', '1')",
      "select sync_metadata.register_deployment('evil')",
      'select sync_metadata.assert_lease(1)',
    ]) {
      assert.equal(await attempt(viewer, statement), '42501', statement)
    }
  })
})

/** One test a statement: refused to host A; allowed once what stands in the way is lifted. */
function refused(statements: readonly Refusal[]): void {
  for (const [statement, lift, restore] of statements) {
    test(statement, async () => {
      const code = await attempt(a, statement)
      assert.equal(code, '42501', 'refused for the lack of a right')
      await run(db, lift)
      try {
        assert.equal(await attempt(a, statement), 'allowed', 'with the right that was missing')
      } finally {
        await run(db, restore)
      }
      assert.notEqual(await attempt(a, statement), 'allowed', 'the right was taken back')
    })
  }
}

/** Runs a statement in a transaction and undoes it. @returns the code of the error, or that it was allowed. */
async function attempt(pool: Pool, statement: string): Promise<unknown> {
  const undo = new Error('undo')
  try {
    await pool.begin(async tx => {
      await tx`${raw(named(statement))}`
      throw undo
    })
  } catch (error) {
    if (error === undo) return 'allowed'
    const {code, cause} = error as {code?: string; cause?: {code?: string}}
    return code === 'SYNC_PERMISSION' || code === 'SYNC_DATA' ? cause?.code : code
  }
  return undefined
}

async function run(pool: Pool, statements: string): Promise<void> {
  await pool`${raw(named(statements))}`
}

function named(text: string): string {
  return text
    .replaceAll('$DB', () => db.endpoint.database)
    .replace(/\$([AB]\b|alpha_\w+|beta_\w+)/g, (_, name: string) => names[name] ?? assert.fail(name))
}

async function relations(): Promise<string[]> {
  const rows = await db<{name: string}>`
    select relname as name from pg_class
    where relnamespace = 'sync_metadata'::regnamespace and relkind in ('r', 'v') order by 1`
  return rows.map(({name}) => name)
}

async function login(group: string | undefined): Promise<Pool> {
  const role = `plain_${randomBytes(6).toString('hex')}`
  const password = generatePassword()
  await db`create role ${db(role)} login password ${raw(`'${scramVerifier(password)}'`)}`
  if (group) await db`grant ${db(group)} to ${db(role)}`
  return connect(withChanges(db.endpoint, {user: role, password}), {applicationName: 'owsync-test', max: 1})
}
