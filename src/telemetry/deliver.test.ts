import assert from 'node:assert/strict'
import {createServer, type AddressInfo} from 'node:net'
import {once} from 'node:events'
import {PassThrough} from 'node:stream'
import {inspect} from 'node:util'
import {describe, test} from 'vitest'
import {refusal} from '../../test/host.ts'
import {httpReceiver, mailReceiver} from '../../test/receivers.ts'
import type {Notice} from './alert.ts'
import {AlertNotDeliveredError, channelsOf, type ChannelSettings} from './deliver.ts'
import {createLog} from './log.ts'

const sender = {clusterName: 'host-a', nodeId: 'host-a-node-a'}
const {signal} = new AbortController()
const raised: Notice = {
  event: 'raised',
  rule: 'sync_lag',
  client: 'acme',
  summary: 'acme is <700> s & more behind',
  raisedAt: '2025-01-01T00:00:00.000Z',
  at: '2025-01-01T00:00:00.000Z',
}
const recovered: Notice = {...raised, event: 'recovered', at: '2025-01-01T00:05:00.000Z'}

const none: ChannelSettings = {
  alertsSlackUrl: undefined,
  alertsWebhookUrl: undefined,
  alertsPagerdutyKey: undefined,
  alertsSmtpUrl: undefined,
  alertsEmailTo: [],
}

const hidden = (value: string) => ({reveal: () => value})

type Options = Parameters<typeof channelsOf>[2]

function only(settings: Partial<ChannelSettings>, options?: Options) {
  const [channel, ...others] = channelsOf({...none, ...settings}, sender, options)
  assert.ok(channel !== undefined && others.length === 0)
  return channel
}

/** Everything that a person or a log could see of an error. */
function shown(error: unknown): string {
  const stream = new PassThrough()
  createLog({level: 'info', format: 'json', stream}).info({err: error}, 'failed')
  return `${inspect(error, {depth: 10, showHidden: true})} ${JSON.stringify(error)} ${String(stream.read())}`
}

async function failure(sending: Promise<void>): Promise<AlertNotDeliveredError> {
  const error = await refusal(sending)
  assert.ok(error instanceof AlertNotDeliveredError)
  return error
}

test('no settings, no channels', () => {
  assert.deepEqual(channelsOf(none, sender), [])
})

test('every channel that is named is there', async () => {
  await using http = await httpReceiver()
  const url = hidden(http.url)
  const channels = channelsOf(
    {
      alertsSlackUrl: url,
      alertsWebhookUrl: url,
      alertsPagerdutyKey: url,
      alertsSmtpUrl: url,
      alertsEmailTo: ['a@b.example'],
    },
    sender,
  )
  assert.deepEqual(
    channels.map(({name}) => name),
    ['slack', 'webhook', 'pagerduty', 'email'],
  )
})

test('Slack gets one message with a line for each alert, and its markup is escaped', async () => {
  await using http = await httpReceiver()
  const slack = only({alertsSlackUrl: hidden(`${http.url}/services/T0/B0/x`)})
  await slack.send([raised, recovered], signal)
  assert.deepEqual(
    http.posts.map(({path, body}) => [path, body]),
    [
      [
        '/services/T0/B0/x',
        {
          text:
            '*host-a*\n:large_orange_circle: acme is &lt;700&gt; s &amp; more behind\n' +
            ':large_green_circle: over: acme is &lt;700&gt; s &amp; more behind',
        },
      ],
    ],
  )
})

test('the webhook gets all of it as JSON, with the login that its URL has', async () => {
  await using http = await httpReceiver()
  const url = `${http.url}/hook?team=1`.replace('http://', 'http://user:p%40ss@')
  await only({alertsWebhookUrl: hidden(url)}).send([raised, recovered], signal)
  const [post] = http.posts
  assert.equal(post?.path, '/hook?team=1')
  assert.equal(post.headers['content-type'], 'application/json')
  assert.equal(post.headers.authorization, `Basic ${Buffer.from('user:p@ss').toString('base64')}`)
  const alert = {
    key: 'sync_lag/acme',
    rule: 'sync_lag',
    severity: 'error',
    client: 'acme',
    summary: 'acme is <700> s & more behind',
    raised_at: '2025-01-01T00:00:00.000Z',
    runbook: 'docs/operations.md#alert-sync-lag',
  }
  assert.deepEqual(post.body, {
    cluster_name: 'host-a',
    node_id: 'host-a-node-a',
    alerts: [
      {event: 'raised', ...alert, recovered_at: null},
      {event: 'recovered', ...alert, recovered_at: '2025-01-01T00:05:00.000Z'},
    ],
  })
})

test('PagerDuty gets an incident, and its end under the same key', async () => {
  await using http = await httpReceiver()
  http.answer = 202
  const pagerdutyUrl = `${http.url}/v2/enqueue`
  const pagerduty = only({alertsPagerdutyKey: hidden('R0UT1NG')}, {pagerdutyUrl})
  await pagerduty.send([raised, recovered], signal)
  const bodies = http.posts.map(({body}) => body as Record<string, unknown>)
  assert.deepEqual(
    bodies.map(({routing_key, event_action, dedup_key}) => [routing_key, event_action, dedup_key]),
    [
      ['R0UT1NG', 'trigger', 'openwebui-sync/host-a/sync_lag/acme'],
      ['R0UT1NG', 'resolve', 'openwebui-sync/host-a/sync_lag/acme'],
    ],
  )
  assert.deepEqual(bodies[0]?.payload, {
    summary: 'host-a: acme is <700> s & more behind',
    source: 'host-a-node-a',
    severity: 'error',
    timestamp: '2025-01-01T00:00:00.000Z',
    component: 'acme',
    class: 'sync_lag',
    custom_details: {runbook: 'docs/operations.md#alert-sync-lag', raised_at: '2025-01-01T00:00:00.000Z'},
  })
})

describe('mail', () => {
  const to = ['ops@site.example', 'boss@site.example']
  const email = (url: string, options?: Options) =>
    only({alertsSmtpUrl: hidden(url), alertsEmailTo: to}, options)

  test('goes to everyone, with what to do', async () => {
    await using server = await mailReceiver('sender@site.example:s3cret')
    await email(`smtp://sender%40site.example:s3cret@127.0.0.1:${server.port}`).send(
      [raised, recovered],
      signal,
    )
    const [mail] = server.mails
    assert.deepEqual([mail?.from, mail?.to], ['sender@site.example', to])
    assert.match(mail?.text ?? '', /^Subject: \[host-a\] 2 alerts/m)
    assert.match(mail?.text ?? '', /docs\/operations\.md#alert-sync-lag/)
    assert.match(mail?.text ?? '', /over: acme is <700> s & more behind/)
  })

  test('of one alert says so in its subject, whatever is in it', async () => {
    await using server = await mailReceiver('')
    const hostile = {...raised, summary: 'acme\r\nBcc: thief@site.example\r\n\r\nis behind'}
    await email(`smtp://127.0.0.1:${server.port}?from=alerts@site.example`).send([hostile], signal)
    const [mail] = server.mails
    assert.deepEqual([mail?.from, mail?.to], ['alerts@site.example', to])
    const [head = ''] = mail?.text.split('\r\n\r\n') ?? []
    assert.match(head, /^Subject: \[host-a\] acme Bcc: thief@site.example is behind$/m)
    assert.doesNotMatch(head, /^Bcc/m)
  })

  test('a wrong login is told without it', async () => {
    await using server = await mailReceiver('sender:right')
    const error = await failure(
      email(`smtp://sender:hush-hush@127.0.0.1:${server.port}`).send([raised], signal),
    )
    assert.equal(error.message, 'an alert could not be delivered by email: EAUTH, 535')
    assert.deepEqual(server.logins, ['sender:hush-hush'])
    assert.doesNotMatch(shown(error), /hush/)
  })

  test('a server whose certificate nobody vouches for gets no login', async () => {
    await using server = await mailReceiver('sender:hush-hush', {hideSTARTTLS: false})
    const error = await failure(
      email(`smtp://sender:hush-hush@127.0.0.1:${server.port}`).send([raised], signal),
    )
    assert.match(error.message, /by email: (ETLS|ESOCKET|DEPTH_ZERO_SELF_SIGNED_CERT)/)
    assert.deepEqual(server.logins, [])
    await using tls = await mailReceiver('sender:hush-hush', {secure: true})
    await failure(email(`smtps://sender:hush-hush@127.0.0.1:${tls.port}`).send([raised], signal))
    assert.deepEqual(tls.logins, [])
  })

  test('a server that says nothing is given up in time, and its connection closed', async () => {
    await using silent = await silentServer()
    const error = await failure(
      email(`smtp://sender:hush-hush@127.0.0.1:${silent.port}`, {answerWithinMs: 300}).send([raised], signal),
    )
    assert.equal(error.message, 'an alert could not be delivered by email: it did not answer in time')
    await silent.allClosed()
  })

  test('a server that takes no mail is no success', async () => {
    await using server = await mailReceiver('', {
      onRcptTo(_address, _session, callback) {
        callback(Object.assign(new Error('mailbox full of hush-hush'), {responseCode: 452}))
      },
    })
    const error = await failure(email(`smtp://127.0.0.1:${server.port}`).send([raised], signal))
    assert.match(error.message, /452/)
    assert.doesNotMatch(shown(error), /hush/)
  })
})

describe.each(['slack', 'webhook', 'pagerduty'] as const)('%s', name => {
  const channelTo = (url: string, options?: Options) => {
    const secret = hidden(`${url}/hush-hush`)
    if (name === 'slack') return only({alertsSlackUrl: secret}, options)
    if (name === 'webhook') return only({alertsWebhookUrl: secret}, options)
    return only({alertsPagerdutyKey: hidden('hush-hush')}, {...options, pagerdutyUrl: `${url}/hush-hush`})
  }

  for (const status of [302, 307, 400, 403, 404, 429, 500, 503])
    test(`an answer of ${status} is a failure, and tells no secret`, async () => {
      await using http = await httpReceiver()
      http.answer = status
      const error = await failure(channelTo(http.url).send([raised], signal))
      assert.equal(
        error.message,
        `an alert could not be delivered by ${name}: it answered with status ${status}`,
      )
      assert.doesNotMatch(shown(error), /hush/)
      assert.equal(http.posts.length, 1, 'nobody else was told')
    })

  test('silence is given up in time', async () => {
    await using http = await httpReceiver()
    http.answer = 'silence'
    const error = await failure(channelTo(http.url, {answerWithinMs: 300}).send([raised], signal))
    assert.equal(error.message, `an alert could not be delivered by ${name}: it did not answer in time`)
    assert.doesNotMatch(shown(error), /hush/)
  })

  test('an address where nobody listens, or that is none, tells no secret', async () => {
    const {port: left, ...server} = await silentServer()
    await server[Symbol.asyncDispose]()
    const nobody = await failure(channelTo(`http://127.0.0.1:${left}`).send([raised], signal))
    assert.match(nobody.message, /ECONNREFUSED/)
    const none = await failure(channelTo('http://[hush-hush').send([raised], signal))
    const port = await failure(channelTo('http://127.0.0.1:hush-hush').send([raised], signal))
    for (const error of [nobody, none, port]) assert.doesNotMatch(shown(error), /hush/)
  })

  test('it stops when asked to', async () => {
    await using http = await httpReceiver()
    http.answer = 'silence'
    const stop = new AbortController()
    const sending = channelTo(http.url).send([raised], stop.signal)
    stop.abort()
    assert.match((await failure(sending)).message, /it was called off/)
  })
})

/** Takes connections and never says a word. */
async function silentServer() {
  let open = 0
  const closed = Promise.withResolvers<undefined>()
  const server = createServer(socket => {
    open++
    socket.on('error', () => undefined)
    socket.resume()
    socket.on('close', () => {
      if (--open === 0) closed.resolve(undefined)
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return {
    port: (server.address() as AddressInfo).port,
    allClosed: () => closed.promise,
    async [Symbol.asyncDispose]() {
      server.close()
      await once(server, 'close')
    },
  }
}
