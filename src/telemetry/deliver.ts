import {Socket} from 'node:net'
import {hostname} from 'node:os'
import {createTransport} from 'nodemailer'
import {SyncError} from '../core/errors.ts'
import {alertRules, keyOf, sectionOf, type Notice, type Severity} from './alert.ts'

/** Where alerts are sent. `slack`, `webhook`, `pagerduty` and `email` are those there are. */
export type Channel = {
  readonly name: ChannelName
  /**
   * Sends what has happened at one time, as one message where the receiver has such a thing.
   *
   * @throws {AlertNotDeliveredError} and may have delivered all the same, when the answer was lost.
   */
  send(notices: readonly Notice[], signal: AbortSignal): Promise<void>
}

export type ChannelName = 'slack' | 'webhook' | 'pagerduty' | 'email'

/** Those of the settings that say where alerts go; what is absent is not used. */
export type ChannelSettings = {
  readonly alertsSlackUrl: Hidden | undefined
  readonly alertsWebhookUrl: Hidden | undefined
  readonly alertsPagerdutyKey: Hidden | undefined
  readonly alertsSmtpUrl: Hidden | undefined
  readonly alertsEmailTo: readonly string[]
}

type Hidden = {reveal(): string}

/** Who sends, as the receivers read it. */
export type Sender = {readonly clusterName: string; readonly nodeId: string}

/** A receiver of alerts did not take one. Names the channel, never its address: that is a secret. */
export class AlertNotDeliveredError extends SyncError {
  override readonly name = 'AlertNotDeliveredError'
  readonly code = 'SYNC_ALERT_NOT_DELIVERED'
  override readonly retryable = true
  readonly next = 'Check the ALERTS_ setting of that channel; it is tried again for a day.'
  readonly channel: ChannelName

  // Without a cause: fetch and mail errors quote the address, and that carries the secret.
  constructor(channel: ChannelName, reason: string) {
    super(`an alert could not be delivered by ${channel}: ${reason}`)
    this.channel = channel
  }
}

/** How long a receiver may take. */
const ANSWER_WITHIN_MS = 10_000
const PAGERDUTY_URL = 'https://events.pagerduty.com/v2/enqueue'

/** @returns the channels that the settings name; none when no alerts are wanted. */
export function channelsOf(
  settings: ChannelSettings,
  sender: Sender,
  {pagerdutyUrl = PAGERDUTY_URL, answerWithinMs = ANSWER_WITHIN_MS} = {},
): readonly Channel[] {
  const {alertsSlackUrl, alertsWebhookUrl, alertsPagerdutyKey, alertsSmtpUrl, alertsEmailTo} = settings
  const within = (signal: AbortSignal) => AbortSignal.any([signal, AbortSignal.timeout(answerWithinMs)])
  const channel = (name: ChannelName, send: Channel['send']): Channel => ({
    name,
    send: (notices, signal) => send(notices, within(signal)),
  })
  return [
    ...(alertsSlackUrl === undefined
      ? []
      : [
          channel('slack', (notices, signal) =>
            post('slack', alertsSlackUrl.reveal(), {text: slackText(notices, sender)}, signal),
          ),
        ]),
    ...(alertsWebhookUrl === undefined
      ? []
      : [
          channel('webhook', (notices, signal) =>
            post('webhook', alertsWebhookUrl.reveal(), webhookBody(notices, sender), signal),
          ),
        ]),
    ...(alertsPagerdutyKey === undefined
      ? []
      : [
          channel('pagerduty', async (notices, signal) => {
            // An event each; one that arrives twice is the same incident, by its key.
            for (const notice of notices)
              await post(
                'pagerduty',
                pagerdutyUrl,
                pagerdutyEvent(notice, sender, alertsPagerdutyKey.reveal()),
                signal,
              )
          }),
        ]),
    ...(alertsSmtpUrl === undefined
      ? []
      : [
          channel('email', (notices, signal) =>
            sendMail(alertsSmtpUrl.reveal(), alertsEmailTo, mailOf(notices, sender), signal),
          ),
        ]),
  ]
}

async function post(name: ChannelName, address: string, body: object, signal: AbortSignal): Promise<void> {
  let response: Response
  try {
    const url = new URL(address)
    const {username, password} = url
    const login = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`
    // fetch refuses a URL with a login in it, and quotes it in the refusal.
    url.username = ''
    url.password = ''
    response = await fetch(url, {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        'user-agent': 'openwebui-sync',
        ...(username !== '' && {authorization: `Basic ${Buffer.from(login).toString('base64')}`}),
      },
      body: JSON.stringify(body),
      // Whoever is sent elsewhere has the wrong address: nothing is told to a place that was not named.
      redirect: 'manual',
      signal,
    })
    await response.body?.cancel()
  } catch (error) {
    throw new AlertNotDeliveredError(name, reasonOf(error))
  }
  if (!response.ok) throw new AlertNotDeliveredError(name, `it answered with status ${response.status}`)
}

type Mail = {readonly subject: string; readonly text: string}

async function sendMail(
  address: string,
  to: readonly string[],
  mail: Mail,
  signal: AbortSignal,
): Promise<void> {
  // Ours, so that it can be closed at any time: the library's own patience is minutes.
  const socket = new Socket()
  const close = () => {
    socket.destroy(new Error('given up'))
  }
  signal.addEventListener('abort', close)
  try {
    signal.throwIfAborted()
    const url = new URL(address)
    const isSecure = url.protocol === 'smtps:'
    const user = decodeURIComponent(url.username)
    const isLocal = /^(localhost|127\..*|\[::1\])$/.test(url.hostname)
    const transport = createTransport({
      host: url.hostname.replace(/^\[|\]$/g, ''),
      port: Number(url.port) || (isSecure ? 465 : 587),
      secure: isSecure,
      // A password does not go over a network in clear text.
      requireTLS: !isSecure && user !== '' && !isLocal,
      ...(user !== '' && {auth: {user, pass: decodeURIComponent(url.password)}}),
      connectionTimeout: ANSWER_WITHIN_MS,
      greetingTimeout: ANSWER_WITHIN_MS,
      socketTimeout: ANSWER_WITHIN_MS,
      dnsTimeout: ANSWER_WITHIN_MS,
      disableFileAccess: true,
      disableUrlAccess: true,
      socket,
    })
    const from = url.searchParams.get('from') ?? (user.includes('@') ? user : `openwebui-sync@${hostname()}`)
    await transport.sendMail({from, to: [...to], ...mail, headers: {'auto-submitted': 'auto-generated'}})
  } catch (error) {
    throw new AlertNotDeliveredError('email', signal.aborted ? reasonOf(signal.reason) : reasonOf(error))
  } finally {
    signal.removeEventListener('abort', close)
    socket.destroy()
  }
}

/** What may be told of a failure: codes and states. Messages quote addresses, and what the other side says. */
function reasonOf(error: unknown): string {
  const {name, code, cause, responseCode} = error as {
    name?: unknown
    code?: unknown
    cause?: unknown
    responseCode?: unknown
  }
  if (name === 'TimeoutError') return 'it did not answer in time'
  if (name === 'AbortError') return 'it was called off'
  const facts = [code, (cause as {code?: unknown} | undefined)?.code, responseCode].filter(
    fact => (typeof fact === 'string' && /^[A-Z_0-9]{2,40}$/.test(fact)) || typeof fact === 'number',
  )
  return facts.length === 0 ? 'its address cannot be used' : facts.join(', ')
}

const signs: Readonly<Record<Severity, string>> = {
  critical: ':red_circle:',
  error: ':large_orange_circle:',
  warning: ':large_yellow_circle:',
}

function slackText(notices: readonly Notice[], {clusterName}: Sender): string {
  const escaped = (text: string) =>
    text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;')
  const line = (notice: Notice) => {
    const sign =
      notice.event === 'recovered' ? ':large_green_circle:' : signs[alertRules[notice.rule].severity]
    return `${sign} ${escaped(lineOf(notice))}`
  }
  return [`*${escaped(clusterName)}*`, ...notices.map(line)].join('\n')
}

function webhookBody(notices: readonly Notice[], {clusterName, nodeId}: Sender): object {
  return {
    cluster_name: clusterName,
    node_id: nodeId,
    alerts: notices.map(notice => ({
      event: notice.event,
      key: keyOf(notice),
      rule: notice.rule,
      severity: alertRules[notice.rule].severity,
      client: notice.client ?? null,
      summary: notice.summary,
      raised_at: notice.raisedAt,
      recovered_at: notice.event === 'recovered' ? notice.at : null,
      runbook: sectionOf(notice),
    })),
  }
}

function pagerdutyEvent(notice: Notice, {clusterName, nodeId}: Sender, routingKey: string): object {
  return {
    routing_key: routingKey,
    event_action: notice.event === 'raised' ? 'trigger' : 'resolve',
    dedup_key: `openwebui-sync/${clusterName}/${keyOf(notice)}`,
    payload: {
      // PagerDuty takes no more.
      summary: `${clusterName}: ${notice.summary}`.slice(0, 1_024),
      source: nodeId,
      severity: alertRules[notice.rule].severity,
      timestamp: notice.at,
      component: notice.client ?? clusterName,
      class: notice.rule,
      custom_details: {runbook: sectionOf(notice), raised_at: notice.raisedAt},
    },
  }
}

function mailOf(notices: readonly Notice[], {clusterName, nodeId}: Sender): Mail {
  const [first] = notices
  const subject =
    notices.length === 1 && first !== undefined
      ? `[${clusterName}] ${lineOf(first)}`
      : `[${clusterName}] ${notices.length} alerts`
  const paragraph = (notice: Notice) =>
    `${lineOf(notice)}\n  ${alertRules[notice.rule].severity}, since ${notice.raisedAt}\n  what to do: ${sectionOf(notice)}`
  return {
    subject: subject.replace(/\s+/g, ' ').slice(0, 200),
    text: `${notices.map(paragraph).join('\n\n')}\n\nSent by ${nodeId}.\n`,
  }
}

function lineOf({event, summary}: Notice): string {
  return event === 'raised' ? summary : `over: ${summary}`
}
