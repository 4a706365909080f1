import {databaseOutage} from './database-outage.ts'

// `OWSYNC_OUTAGE_MINUTES`.
databaseOutage(Number(process.env['OWSYNC_OUTAGE_MINUTES'] ?? 10) * 60_000)
