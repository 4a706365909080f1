import type {Readable, Writable} from 'node:stream'
import {SyncError, UsageError} from '../core/errors.ts'
import type {Context} from './command.ts'

/** The person was asked and did not say yes; nothing was done. */
export class NotConfirmedError extends SyncError {
  override readonly name = 'NotConfirmedError'
  readonly code = 'SYNC_NOT_CONFIRMED'
  readonly next = 'Run it again and type the name exactly, or give --yes.'

  constructor(name: string) {
    super(`it was not confirmed: the name "${name}" was not typed, so nothing was done`)
  }
}

/** The person pressed Escape or Ctrl-C at a question. */
export class CancelledError extends Error {
  override readonly name = 'AbortError'
}

type Terminal = {readonly stdin: Readable; readonly stderr: Writable; readonly isTerminal: boolean}

/** Questions to a person. They are talk: they go to standard error, so that data can be piped away. */
export function questions(
  {stdin, stderr, isTerminal}: Terminal,
  signal: AbortSignal,
): Pick<Context, 'ask' | 'confirm' | 'choose'> {
  const streams = {input: stdin, output: stderr, signal}
  const prompts = async (question: string) => {
    if (!isTerminal) {
      throw new UsageError(
        `it needs an answer and there is no terminal to ask on: ${question}`,
        'Give the answer as an option, or --yes for a confirmation; --help lists the options.',
      )
    }
    return await import('@clack/prompts')
  }
  return {
    async ask(question, {placeholder, secret = false, fault} = {}) {
      const {password, text, isCancel} = await prompts(question)
      const validate = (answer: string | undefined) => fault?.(answer ?? '')
      const answer = secret
        ? await password({message: question, validate, ...streams})
        : await text({
            message: question,
            validate,
            ...(placeholder !== undefined && {placeholder}),
            ...streams,
          })
      if (isCancel(answer)) throw new CancelledError('cancelled')
      return answer
    },
    async confirm(question) {
      const {confirm, isCancel} = await prompts(question)
      const answer = await confirm({message: question, initialValue: false, ...streams})
      if (isCancel(answer)) throw new CancelledError('cancelled')
      return answer
    },
    async choose(question, choices) {
      const {select, isCancel} = await prompts(question)
      const options = choices.map(({label, hint}, value) => ({
        value,
        label,
        ...(hint !== undefined && {hint}),
      }))
      const index = await select({message: question, options, ...streams})
      const choice = isCancel(index) ? undefined : choices[index]
      if (!choice) throw new CancelledError('cancelled')
      return choice.value
    },
  }
}

/**
 * Says what a destructive command will do and waits until its object's name was typed; `yes` skips the question.
 *
 * @throws {NotConfirmedError} when another name was typed.
 * @throws {UsageError} without a terminal and without `yes`.
 */
export async function confirmByName(
  {err, ask}: Pick<Context, 'err' | 'ask'>,
  {will, name, yes}: {readonly will: string; readonly name: string; readonly yes: boolean},
): Promise<void> {
  err(will)
  if (yes) return
  const typed = await ask(`Type ${name} to go on`)
  if (typed.trim() !== name) throw new NotConfirmedError(name)
}
