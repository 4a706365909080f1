#!/usr/bin/env -S node --disable-warning=ExperimentalWarning --max-semi-space-size=8
import {main} from './cli/run.ts'

process.exitCode = await main(process.argv.slice(2), process.env, process)
