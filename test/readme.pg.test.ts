import assert from 'node:assert/strict'
import {execFile} from 'node:child_process'
import {mkdtemp, readFile, rm, symlink} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join, resolve} from 'node:path'
import {promisify} from 'node:util'
import {afterAll, beforeAll, test} from 'vitest'
import {urlOf} from '../src/net/endpoint.ts'
import {connect} from '../src/postgres/connect.ts'
import {raw} from '../src/postgres/sql.ts'
import {generate, sizes} from '../src/sample/generate.ts'
import {emptyDatabase, testDatabase} from './database.ts'
import {testHost} from './host.ts'

// What the pages tell people to type is typed, in the order in which they tell it.

const run = promisify(execFile)

/** Commands of the README that are not run here, and why. */
const leftOut = new Map([
  ['./owsync demo --once', 'test/scenarios/demo.pg.test.ts runs it'],
  ['./owsync demo', 'test/scenarios/demo.pg.test.ts runs it'],
  ['ROLE=node-a ./owsync node', 'test/scenarios/leader-lost.pg.test.ts runs nodes'],
  ['npm cit', 'runs this test'],
  ['npm run check', '.ci/run runs it'],
  ['npm run torture', 'takes as long as it is given'],
  ['export DB_SSL_CA_FILE=supabase-ca.crt', 'the test server has no certificate'],
])

let folder = ''
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'owsync-readme-'))
})
afterAll(() => rm(folder, {recursive: true, force: true}))

test('the commands of the README work as they stand', async () => {
  await using database = await emptyDatabase()
  const source = join(folder, 'webui.db')
  generate(source, {version: '0.10.2', seed: 1, ...sizes.tiny})
  await symlink(resolve('owsync'), join(folder, 'owsync'))

  const lines = (await blocks('README.md', 'sh')).flatMap(block => block.split('\n'))
  const commands = lines.map(line => line.replace(/\s+#.*/, '')).filter(line => line !== '')
  for (const [command] of leftOut)
    assert.ok(commands.includes(command), `the README no longer has ${command}`)
  const script = commands
    .filter(command => !leftOut.has(command))
    .join('\n')
    .replaceAll('postgresql://postgres:PASSWORD@db.REF.supabase.co:5432/postgres', urlOf(database.endpoint))
    .replaceAll('/opt/openwebui/acme/data/webui.db', source)
    .replaceAll('/tmp/acme.db', join(folder, 'acme.db'))
  const env = {PATH: process.env['PATH'], STATE_DIR: join(folder, 'state')}
  const {stdout} = await run('sh', ['-e', '-c', script], {cwd: folder, env})

  assert.match(stdout, /control schema is now at version/)
  assert.match(stdout, /acme: generation 1: \d+ upserted/)
  assert.match(stdout, /acme: generation 1 restored to .*acme\.db: \d+ rows/)
  assert.match(stdout, /^acme +prod-host-1 +active +1 /m)
})

for (const [i, block] of (await blocks('docs/operations.md', 'sql')).entries())
  test(`query ${i + 1} of docs/operations.md works for a host`, async () => {
    await using database = await testDatabase()
    await using host = await testHost(database, `readme-${process.pid}-${i}`)
    await using pool = connect(host.endpoint, {max: 1, applicationName: 'owsync-test'})
    await pool`${raw(block)}`
  })

async function blocks(page: string, language: string): Promise<string[]> {
  const text = await readFile(page, 'utf8')
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, 'gms'))].map(
    ([, block = '']) => block,
  )
}
