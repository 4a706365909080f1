import {HEARTBEAT_MS, loadedApi} from './loaded-api.ts'

// `OWSYNC_LOAD_SECONDS` for each path. A heartbeat that is missed leaves a gap of two.
loadedApi(Number(process.env['OWSYNC_LOAD_SECONDS'] ?? 30), 2 * HEARTBEAT_MS)
