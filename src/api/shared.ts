/**
 * Shares one run of some work between all who ask for it while the run before it is still going on: whoever asks gets
 * an answer that was begun after he asked, and never more than one run goes on for one question.
 */
export class Shared<A extends object, R> {
  readonly #work: (asked: A) => Promise<R>
  readonly #running = new Map<string, {readonly now: Promise<unknown>; next?: Promise<R>}>()

  constructor(work: (asked: A) => Promise<R>) {
    this.#work = work
  }

  get(asked: A): Promise<R> {
    const question = JSON.stringify(asked)
    const running = this.#running.get(question)
    if (running) {
      running.next ??= running.now.then(() => this.#start(question, asked))
      return running.next
    }
    return this.#start(question, asked)
  }

  #start(question: string, asked: A): Promise<R> {
    const answer = this.#work(asked)
    const run: {readonly now: Promise<unknown>; next?: Promise<R>} = {
      now: answer.then(
        () => undefined,
        () => undefined,
      ),
    }
    this.#running.set(question, run)
    void run.now.then(() => {
      // Whoever waits for the next run starts it in a moment, and puts it here.
      if (!run.next && this.#running.get(question) === run) this.#running.delete(question)
    })
    return answer
  }
}
