import {createHash} from 'node:crypto'
import {existsSync, mkdirSync, readFileSync, readdirSync, rmSync} from 'node:fs'
import {tmpdir} from 'node:os'
import {join} from 'node:path'
import {generate, sizes as samples, type SampleSize} from '../src/sample/generate.ts'

/** The files to measure with: the 750 MB one of the claims, ones of 200 and 10 MB, and others (75 and 8 MB) for a quick look. */
export const sizes = {
  bench: samples.bench,
  '200MB': {users: 1_400, chats: 2_700, messages: 265_000},
  '10MB': {users: 60, chats: 130, messages: 12_500},
  medium: {users: 500, chats: 1_000, messages: 100_000},
  small: {users: 50, chats: 100, messages: 10_000},
} as const satisfies Record<string, SampleSize>

export type Size = keyof typeof sizes

export function isSize(text: string): text is Size {
  return Object.hasOwn(sizes, text)
}

/** @returns the source of that size: made once, and again whenever what makes it has changed. */
export function sourceFile(size: Size, say: (text: string) => void): string {
  const folder = join(tmpdir(), 'owsync-bench')
  mkdirSync(folder, {recursive: true})
  const file = join(folder, `${size}-${makersDigest()}.db`)
  if (existsSync(file)) return file
  for (const name of readdirSync(folder)) if (name.startsWith(`${size}-`)) rmSync(join(folder, name))
  say(`making ${file}`)
  generate(file, {...sizes[size], version: '0.6.31', seed: 1})
  return file
}

function makersDigest(): string {
  const folder = join(import.meta.dirname, '../src/sample')
  const digest = createHash('sha256')
  for (const name of readdirSync(folder).sort())
    if (!name.endsWith('.test.ts')) digest.update(readFileSync(join(folder, name)))
  return digest.digest('hex').slice(0, 12)
}
