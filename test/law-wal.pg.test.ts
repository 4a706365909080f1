import {modes, testLaw} from './law.ts'

// One file a journal, so that two processes share the work.
testLaw(modes.filter(({journalMode}) => journalMode === 'wal'))
