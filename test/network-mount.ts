import fs from 'node:fs'
import {syncBuiltinESMExports} from 'node:module'

// Loaded before `owsync` by a test (node --import): the folder in NETWORK_FOLDER counts as mounted from elsewhere.

const {NETWORK_FOLDER = '', NETWORK_TYPE = 'nfs4'} = process.env
const read = fs.readFileSync.bind(fs) as (...args: unknown[]) => unknown
const mount = `999 1 0:99 / ${NETWORK_FOLDER.replaceAll(' ', '\\040')} rw,relatime shared:1 - ${NETWORK_TYPE} server:/export rw\n`

fs.readFileSync = ((...args: unknown[]) => {
  const text = read(...args)
  return args[0] === '/proc/self/mountinfo' ? `${String(text)}${mount}` : text
}) as typeof fs.readFileSync
syncBuiltinESMExports()
