import {renameSync} from 'node:fs'
import {SourceWriter} from '../src/source/write.ts'
import {chunk} from '../src/sync/first-load.ts'
import {Held} from '../src/sync/held.ts'
import {Sidecar} from '../src/sync/sidecar.ts'
import {paged} from '../src/sync/sync.ts'

// Loaded before `owsync` by tests of crashes (node --import): ends the process, as a power switch would, at a chosen
// call into the sidecar or, `writer.write`, into what writes to the source, makes the chunks of a first load small, and finds changes by pages in small files.
// `CRASH_AT=settle:2:after`: after the second call. `RENAME=from:to` puts another file in the source's place once it has
// been opened.

const {CRASH_AT = '', CHUNK_BYTES = '', PAGED_BYTES = '', RENAME = ''} = process.env
const [name = '', nth = '1', when = 'before'] = CRASH_AT.split(':')

if (CHUNK_BYTES !== '') chunk.bytes = Number(CHUNK_BYTES)
if (PAGED_BYTES !== '') paged.bytes = Number(PAGED_BYTES)

const [from, to] = RENAME.split(':')
if (from && to) {
  const open = Object.getOwnPropertyDescriptor(Held.prototype, 'source')?.value as Held['source']
  Held.prototype.source = async function (this: Held, ...args) {
    const source = await open.apply(this, args)
    renameSync(from, to)
    return source
  }
}

if (name !== '') {
  const [own, method = own] = name.split('.') as [string, string?]
  const prototype: unknown = own === 'writer' ? SourceWriter.prototype : Sidecar.prototype
  const methods = prototype as Record<string, (...args: unknown[]) => unknown>
  const original = methods[method]
  if (original === undefined) throw new Error(`there is no ${name}`)
  let calls = 0
  const crash = () => process.kill(process.pid, 'SIGKILL')
  methods[method] = function (this: unknown, ...args: unknown[]) {
    const isChosen = ++calls === Number(nth)
    if (isChosen && when === 'before') crash()
    const result = original.apply(this, args)
    if (isChosen && when === 'after') crash()
    return result
  }
}
