import {addToken, tokensFile} from '../service/token-file.ts'
import {command} from './command.ts'

export const add = command({
  details:
    'Prints a new token for the API, once: the file (API_TOKENS_FILE, or api-tokens in STATE_DIR) gets only what it is recognized by. Nodes take it within a second. To take it away, remove its line.',
  examples: ['token add grafana --scope read', 'token add ada --scope operate'],
  positionals: {name: {about: 'Who or what it is for; the audit log shows it.'}},
  options: {
    scope: {
      type: 'string',
      about: 'Whether it may only look, or also change things.',
      choices: ['read', 'operate'],
      required: true,
    },
  },
  async run({name, scope}, context) {
    const file = tokensFile(await context.config())
    const token = await addToken(file, name, scope)
    context.err(`This token is not shown again. ${file} has what it is recognized by.`)
    context.out({name, scope, token, file}, token)
    return 0
  },
})
