/** What SQLite says of a function, collation or virtual table that an app registers and its file alone does not have. */
const APPS_OWN =
  /^(no such (collation sequence|function|module)|unknown function|no query solution)\b.*|^malformed database schema .*(no such|unknown).*/

/** @returns what is missing, in SQLite's words, when that is why `error` or what caused it was thrown. */
export function missingFromApp(error: unknown): string | undefined {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    const isSqlite = 'errcode' in cause && (Number(cause.errcode) & 0xff) === 1
    if (isSqlite && APPS_OWN.test(cause.message)) return cause.message
  }
  return undefined
}
