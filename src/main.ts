#!/usr/bin/env -S node --disable-warning=ExperimentalWarning
import {main} from './cli/run.ts'

process.exitCode = await main(process.argv.slice(2), process.env, process)
