import {readFileSync} from 'node:fs'

/** @returns this program's version, as its package says. */
export function version(): string {
  const {version} = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
    version: string
  }
  return version
}
