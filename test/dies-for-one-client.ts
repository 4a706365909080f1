import {existsSync} from 'node:fs'

// Loaded first into the processes of a node: a worker that is given a run of the client OWSYNC_TEST_DIES_FOR dies of it, as
// if its file were poison, for as long as the file OWSYNC_TEST_DIES_WHILE is there.

const {OWSYNC_TEST_DIES_FOR: client, OWSYNC_TEST_DIES_WHILE: flag = ''} = process.env

process.prependListener('message', message => {
  const {type, order} = message as {type?: unknown; order?: {clientName?: unknown}}
  if (type === 'run' && order?.clientName === client && existsSync(flag)) process.kill(process.pid, 'SIGKILL')
})
