import {modes, testLaw} from './law.ts'

testLaw(modes, {cases: 1_667, isRun: process.env['OWSYNC_TORTURE'] !== undefined})
