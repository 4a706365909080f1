import assert from 'node:assert/strict'
import {execFile} from 'node:child_process'
import {chmod, glob, mkdir, mkdtemp, readFile, rm, symlink} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {dirname, join, resolve} from 'node:path'
import {DatabaseSync} from 'node:sqlite'
import {promisify} from 'node:util'
import {afterAll, beforeAll, test} from 'vitest'

// What `npm publish` would send, unpacked where npm would put it: Node refuses TypeScript below node_modules, and only
// the packages named as dependencies are there.

const run = promisify(execFile)
const manifest = JSON.parse(await readFile('package.json', 'utf8')) as {
  version: string
  dependencies: Record<string, string>
}
let home = ''
let installed = ''

beforeAll(async () => {
  home = await mkdtemp(join(tmpdir(), 'owsync-package-'))
  // The embedded Postgres runs as another user when this runs as root.
  await chmod(home, 0o755)
  const {stdout} = await run('npm', ['pack', '--json', '--pack-destination', home])
  const [packed] = JSON.parse(stdout.slice(stdout.indexOf('['))) as {filename: string}[]
  installed = join(home, 'node_modules/openwebui-sync')
  await mkdir(installed, {recursive: true})
  await run('tar', ['-xzf', join(home, packed!.filename), '-C', installed, '--strip-components=1'])
  for (const name of Object.keys(manifest.dependencies)) {
    const link = join(home, 'node_modules', name)
    await mkdir(dirname(link), {recursive: true})
    await symlink(resolve('node_modules', name), link)
  }
}, 180_000)

afterAll(async () => {
  await rm(home, {recursive: true, force: true})
})

test('the installed package says its version and lists its commands', async () => {
  assert.equal((await owsync('--version')).stdout, `${manifest.version}\n`)
  assert.match((await owsync('--help')).stdout, /^Usage: owsync COMMAND/)
})

test('the installed command can be started as a program', async () => {
  assert.match(await readFile(join(installed, 'dist/main.js'), 'utf8'), /^#!\/usr\/bin\/env -S node /)
})

test('every command of the installed package can be loaded', async () => {
  assert.match((await owsync('completion', 'bash')).stdout, /complete .* owsync/)
})

test('the installed package syncs a file into its embedded Postgres', async () => {
  const file = join(home, 'webui.db')
  const source = new DatabaseSync(file)
  source.exec("create table user (id text primary key, name text); insert into user values ('1', 'Ada')")
  source.close()
  const {stdout} = await owsync('sync', '--client', 'acme', '--sqlite', file, '--json')
  const {status, rows} = JSON.parse(stdout) as {status: string; rows: {upserted: number}}
  assert.deepEqual([status, rows.upserted], ['success', 1])
}, 120_000)

test('no compiled file points to a source file', async () => {
  const pointing: string[] = []
  for await (const file of glob('dist/**/*.js', {cwd: installed})) {
    const text = await readFile(join(installed, file), 'utf8')
    if (/['"`]\.{1,2}\/[^'"`]*\.ts['"`]/.test(text)) pointing.push(file)
  }
  assert.deepEqual(pointing, [])
})

test('the migrations are in the package, the tests are not', async () => {
  const files: string[] = []
  for await (const file of glob('**/*', {cwd: installed})) files.push(file)
  assert.ok(files.some(file => /^sql\/0001_.*\.sql$/.test(file)))
  assert.deepEqual(
    files.filter(file => file.includes('.test.')),
    [],
  )
})

function owsync(...args: string[]) {
  const env = {...process.env, STATE_DIR: join(home, 'state'), DATABASE_URL: '', ADMIN_DATABASE_URL: ''}
  return run(process.execPath, [join(installed, 'dist/main.js'), ...args], {cwd: home, env})
}
