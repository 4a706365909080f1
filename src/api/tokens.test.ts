import assert from 'node:assert/strict'
import {chmod, mkdtemp, rm, writeFile} from 'node:fs/promises'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {test} from 'vitest'
import {until} from '../../test/until.ts'
import {silentLog} from '../telemetry/log.ts'
import {newToken, parseTokens, Tokens} from './tokens.ts'

async function folder() {
  const path = await mkdtemp(join(tmpdir(), 'owsync-tokens-'))
  return {path, file: join(path, 'tokens'), [Symbol.asyncDispose]: () => rm(path, {recursive: true})}
}

test('a token is let in for what its line says, and is not in the file', async () => {
  await using at = await folder()
  const reader = newToken('ada', 'read')
  const operator = newToken('grace', 'operate')
  assert.ok(!`${reader.line}${operator.line}`.includes(reader.token))
  await writeFile(at.file, `# people\n${reader.line}\n\n${operator.line}  # on call\n`)
  const tokens = new Tokens(at.file, silentLog)
  assert.deepEqual(await tokens.authenticate(`Bearer ${reader.token}`, 'read'), {name: 'ada', scope: 'read'})
  assert.equal((await tokens.authenticate(`bearer  ${operator.token}`, 'operate')).name, 'grace')
  assert.equal((await tokens.authenticate(`Bearer ${operator.token}`, 'read')).name, 'grace')
  await assert.rejects(tokens.authenticate(`Bearer ${reader.token}`, 'operate'), {code: 'SYNC_API_SCOPE'})
})

for (const [what, header] of [
  ['nothing', undefined],
  ['an empty header', ''],
  ['another scheme', 'Basic YTpi'],
  ['no token', 'Bearer '],
  ['an unknown token', `Bearer ${newToken('x', 'read').token}`],
  ['two tokens', 'Bearer a b'],
  ['a token that is too long', `Bearer ${'a'.repeat(100_000)}`],
  ['the hash instead of the token', `Bearer ${newToken('x', 'read').line.split(' ')[2]!}`],
] as const)
  test(`${what} lets nobody in`, async () => {
    await using at = await folder()
    await writeFile(at.file, newToken('ada', 'operate').line)
    await assert.rejects(new Tokens(at.file, silentLog).authenticate(header, 'read'), {
      code: 'SYNC_API_TOKEN',
      status: 401,
    })
  })

test('lines that are none are left out and named, without what is in them', () => {
  const {line} = newToken('ada', 'read')
  const {tokens, problems} = parseTokens(
    [line, 'ada read', 'ada root 00', `ada read ${'0'.repeat(63)}`, '../x read ' + '0'.repeat(64)].join('\n'),
  )
  assert.equal(tokens.length, 1)
  assert.deepEqual(
    problems,
    [2, 3, 4, 5].map(n => `line ${n} is not \`name scope sha256hex\``),
  )
})

test('a token that is added or taken away counts while the API runs', async () => {
  await using at = await folder()
  const tokens = new Tokens(at.file, silentLog)
  const {token, line} = newToken('ada', 'read')
  const isIn = async () => (await tokens.find(token)) !== undefined
  assert.equal(await isIn(), false, 'there is no file')
  await writeFile(at.file, `${line}\n`)
  await until(isIn)
  await writeFile(at.file, '')
  await until(async () => !(await isIn()))
})

test('a file that everybody may write lets nobody in', async () => {
  await using at = await folder()
  const {token, line} = newToken('ada', 'read')
  await writeFile(at.file, line)
  await chmod(at.file, 0o666)
  const tokens = new Tokens(at.file, silentLog)
  assert.equal(await tokens.find(token), undefined)
  await chmod(at.file, 0o600)
  await until(async () => (await tokens.find(token)) !== undefined)
})
