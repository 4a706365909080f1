/**
 * Runs tasks side by side until all end. The first failure aborts the others;
 * every task has settled by the time this returns, so nothing outlives its scope.
 *
 * @throws the first failure; failures it caused in the others are dropped.
 */
export async function together(
  outer: AbortSignal,
  ...tasks: readonly ((signal: AbortSignal) => Promise<void>)[]
): Promise<void> {
  const scope = new AbortController()
  const signal = AbortSignal.any([outer, scope.signal])
  await Promise.allSettled(
    tasks.map(async task => {
      try {
        await task(signal)
      } catch (reason) {
        scope.abort(reason)
      }
    }),
  )
  if (scope.signal.aborted) throw scope.signal.reason
}
