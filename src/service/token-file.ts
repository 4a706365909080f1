import {mkdir, open} from 'node:fs/promises'
import {dirname, join} from 'node:path'
import {newToken, parseTokens, TOKEN_NAME, type Scope} from '../api/tokens.ts'
import type {Config} from '../config/config.ts'
import {UsageError} from '../core/errors.ts'

/** @returns the file of API tokens: the one of the settings, else one in `STATE_DIR`. */
export function tokensFile({apiTokensFile, stateDir}: Pick<Config, 'apiTokensFile' | 'stateDir'>): string {
  return apiTokensFile ?? join(stateDir, 'api-tokens')
}

/**
 * Adds a token for `name` to the file, which is made if there is none; a node that runs takes it within a second.
 *
 * @returns the token, which is kept nowhere.
 * @throws {UsageError} for a name that is none or has a token already, and for a file that cannot be used.
 */
export async function addToken(file: string, name: string, scope: Scope): Promise<string> {
  if (!TOKEN_NAME.test(name))
    throw new UsageError(
      `${JSON.stringify(name.slice(0, 80))} is not a token’s name`,
      'Use up to 63 letters, digits, ".", "_", "@" and "-", beginning with a letter or digit.',
    )
  const {token, line} = newToken(name, scope)
  try {
    await mkdir(dirname(file), {recursive: true, mode: 0o700})
    const handle = await open(file, 'a+', 0o600)
    try {
      const text = await handle.readFile('utf8')
      if (parseTokens(text).tokens.some(each => each.name === name))
        throw new UsageError(
          `there is a token ${name} already`,
          `Choose another name, or remove its line from ${file}: that takes the token away at once.`,
        )
      // In one write, at the end: whoever adds another one at the same time does the same.
      await handle.appendFile(`${text === '' || text.endsWith('\n') ? '' : '\n'}${line}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
  } catch (cause) {
    if (cause instanceof UsageError) throw cause
    const reason = cause instanceof Error && 'code' in cause ? String(cause.code) : String(cause)
    throw new UsageError(
      `the token file ${file} cannot be written (${reason})`,
      'Set API_TOKENS_FILE to the file that the nodes read, and run this as a user who may write it.',
      {cause},
    )
  }
  return token
}
