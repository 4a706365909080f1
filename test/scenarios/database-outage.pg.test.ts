import {databaseOutage} from './database-outage.ts'

databaseOutage(30_000)
