import {chunk} from '../src/sync/first-load.ts'
import {Sidecar} from '../src/sync/sidecar.ts'

// Loaded before `owsync` by tests of crashes (node --import): ends the process, as a power switch would, at a chosen
// call into the sidecar, and makes the chunks of a first load small. `CRASH_AT=settle:2:after`: after the second call.

const {CRASH_AT = '', CHUNK_BYTES = ''} = process.env
const [name = '', nth = '1', when = 'before'] = CRASH_AT.split(':')

if (CHUNK_BYTES !== '') chunk.bytes = Number(CHUNK_BYTES)

if (name !== '') {
  const methods = Sidecar.prototype as unknown as Record<string, (...args: unknown[]) => unknown>
  const original = methods[name]
  if (original === undefined) throw new Error(`the sidecar has no ${name}`)
  let calls = 0
  const crash = () => process.kill(process.pid, 'SIGKILL')
  methods[name] = function (this: unknown, ...args: unknown[]) {
    const isChosen = ++calls === Number(nth)
    if (isChosen && when === 'before') crash()
    const result = original.apply(this, args)
    if (isChosen) crash()
    return result
  }
}
