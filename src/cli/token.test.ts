import assert from 'node:assert/strict'
import {mkdtemp, readFile, rm, stat, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {test} from 'vitest'
import {runCli} from '../../test/cli.ts'
import {Tokens} from '../api/tokens.ts'
import {silentLog} from '../telemetry/log.ts'

async function folder() {
  const path = await mkdtemp(join(tmpdir(), 'owsync-token-'))
  return {path, [Symbol.asyncDispose]: () => rm(path, {recursive: true})}
}

test('a token is printed once, and the nodes of this host know it', async () => {
  await using at = await folder()
  const env = {STATE_DIR: join(at.path, 'state')}
  const added = await runCli(['token', 'add', 'ada', '--scope', 'operate', '--json'], {env})
  assert.equal(added.code, 0, added.err)
  const {token, file, ...others} = added.json() as {token: string; file: string}
  assert.deepEqual(others, {name: 'ada', scope: 'operate'})
  assert.equal(file, join(at.path, 'state', 'api-tokens'))
  assert.equal((await stat(file)).mode & 0o777, 0o600)
  assert.ok(!(await readFile(file, 'utf8')).includes(token))
  assert.deepEqual(await new Tokens(file, silentLog).find(token), {name: 'ada', scope: 'operate'})
  const second = await runCli(['token', 'add', 'grace', '--scope', 'read'], {env})
  assert.equal((await new Tokens(file, silentLog).find(second.out.trim()))?.scope, 'read')
  assert.equal((await new Tokens(file, silentLog).find(token))?.name, 'ada')
})

test('a file that a person has edited keeps its lines', async () => {
  await using at = await folder()
  const file = join(at.path, 'tokens')
  await writeFile(file, '# by hand, and no line end')
  const {out, code} = await runCli(['token', 'add', 'ada', '--scope', 'read'], {env: {API_TOKENS_FILE: file}})
  assert.equal(code, 0)
  assert.match(await readFile(file, 'utf8'), /^# by hand, and no line end\nada read [0-9a-f]{64}\n$/)
  assert.equal((await new Tokens(file, silentLog).find(out.trim()))?.name, 'ada')
})

test('a name is used once, and must be one', async () => {
  await using at = await folder()
  const env = {STATE_DIR: at.path}
  const add = (name: string, ...more: string[]) => runCli(['token', 'add', name, ...more], {env})
  assert.equal((await add('ada', '--scope', 'read')).code, 0)
  const again = await add('ada', '--scope', 'operate')
  assert.equal(again.code, 64)
  assert.match(again.err, /there is a token ada already/)
  for (const name of ['a b', 'x\noperator operate', '#x', '', 'x'.repeat(64)])
    assert.equal((await add(name, '--scope', 'read')).code, 64, name)
  assert.equal((await add('grace')).code, 64, 'without a scope')
  assert.equal((await add('grace', '--scope', 'root')).code, 64)
})
