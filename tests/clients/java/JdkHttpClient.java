// The JDK's own HTTP client, as the Java libraries use it: java JdkHttpClient.java URL VERSION
//
// It asks for HTTP/2 unless told otherwise. Without TLS that is a POST with `Upgrade: h2c`, whose
// body a server must read although it does not upgrade.

import java.io.ByteArrayInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpRequest.BodyPublisher;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse;
import java.net.http.HttpResponse.BodyHandlers;
import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.stream.Collectors;

public class JdkHttpClient {
    static final String TEXT = "Gr\u00fc\u00dfe from Java";
    static HttpClient.Version version;
    static HttpClient client;
    static String url;

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        version = HttpClient.Version.valueOf(arguments[1]);
        client = open();
        answersABodyByLength();
        answersAChunkedBody();
        answersALargeBody();
        answersManyOnOneConnection();
        streams();
        streamsToASubscriber();
        refusesByName();
        getsModels();
        System.out.println("all is well");
    }

    static HttpClient open() {
        return HttpClient.newBuilder()
            .version(version)
            .connectTimeout(Duration.ofSeconds(20))
            .build();
    }

    static String chat(String text, String fields) {
        String message = "{\"role\": \"user\", \"content\": \"" + text + "\"}";
        return "{\"model\": \"echo\", \"messages\": [" + message + "]" + fields + "}";
    }

    static HttpRequest post(BodyPublisher body) {
        return HttpRequest.newBuilder(URI.create(url + "/v1/chat/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer not-needed")
            .timeout(Duration.ofSeconds(60))
            .POST(body)
            .build();
    }

    static BodyPublisher chunked(String body) {
        byte[] bytes = body.getBytes(StandardCharsets.UTF_8);
        return BodyPublishers.ofInputStream(() -> new ByteArrayInputStream(bytes));
    }

    static HttpResponse<String> ask(BodyPublisher body) throws Exception {
        return client.send(post(body), BodyHandlers.ofString());
    }

    static void answersABodyByLength() throws Exception {
        // A client that is new each time asks for the upgrade each time.
        for (int i = 0; i < 3; i++) {
            client = open();
            expectAnswer(ask(BodyPublishers.ofString(chat(TEXT, ""))), TEXT);
        }
    }

    static void answersAChunkedBody() throws Exception {
        client = open();
        expectAnswer(ask(chunked(chat(TEXT, ""))), TEXT);
    }

    static void answersALargeBody() throws Exception {
        // Larger than what one read of a socket brings, though the prompt is short.
        String padding = ", \"user\": \"" + "x".repeat(500) + "\", \"metadata\": {"
            + manyFields(16) + "}" + " ".repeat(300_000);
        for (boolean isChunked : List.of(false, true)) {
            client = open();
            String body = chat(TEXT, padding);
            expectAnswer(ask(isChunked ? chunked(body) : BodyPublishers.ofString(body)), TEXT);
        }
    }

    static String manyFields(int count) {
        List<String> fields = new ArrayList<>();
        for (int i = 0; i < count; i++) {
            fields.add("\"key" + i + "\": \"" + "y".repeat(500) + "\"");
        }
        return String.join(", ", fields);
    }

    static void answersManyOnOneConnection() throws Exception {
        client = open();
        expectAnswer(ask(BodyPublishers.ofString(chat("first", ""))), "first");
        List<CompletableFuture<HttpResponse<String>>> asked = new ArrayList<>();
        for (int i = 0; i < 8; i++) {
            BodyPublisher body = BodyPublishers.ofString(chat("number " + i, ""));
            asked.add(client.sendAsync(post(body), BodyHandlers.ofString()));
        }
        for (int i = 0; i < 8; i++) {
            expectAnswer(asked.get(i).get(), "number " + i);
        }
    }

    static void streams() throws Exception {
        client = open();
        BodyPublisher body = BodyPublishers.ofString(chat(TEXT, ", \"stream\": true"));
        HttpResponse<java.util.stream.Stream<String>> response =
            client.send(post(body), BodyHandlers.ofLines());
        List<String> lines = response.body().collect(Collectors.toList());
        expectStream(response.statusCode(), response.headers().map(), lines);
    }

    static void streamsToASubscriber() throws Exception {
        client = open();
        List<String> lines = new ArrayList<>();
        HttpResponse<Void> response = client
            .sendAsync(
                post(chunked(chat(TEXT, ", \"stream\": true"))),
                BodyHandlers.fromLineSubscriber(new LineSubscriber(lines)))
            .get();
        expectStream(response.statusCode(), response.headers().map(), lines);
    }

    static void refusesByName() throws Exception {
        HttpResponse<String> response =
            ask(BodyPublishers.ofString(chat(TEXT, ", \"temperature\": 3")));
        expect(response.statusCode() == 400, response.body());
        expect(response.body().contains("\"param\":\"temperature\""), response.body());
    }

    static void getsModels() throws Exception {
        HttpRequest request = HttpRequest.newBuilder(URI.create(url + "/v1/models")).build();
        HttpResponse<String> response = client.send(request, BodyHandlers.ofString());
        expect(response.statusCode() == 200, response.body());
        expect(response.body().contains("\"id\":\"echo\""), response.body());
    }

    static void expectAnswer(HttpResponse<String> response, String text) {
        expect(response.statusCode() == 200, response.statusCode() + " " + response.body());
        expect(response.body().contains("\"content\":\"" + text + "\""), response.body());
    }

    static void expectStream(int status, Map<String, List<String>> headers, List<String> lines) {
        expect(status == 200, status + " " + lines);
        expect(headers.get("content-type").get(0).startsWith("text/event-stream"), "" + headers);
        List<String> events = lines.stream()
            .filter(line -> line.startsWith("data: "))
            .collect(Collectors.toList());
        expect(events.get(events.size() - 1).equals("data: [DONE]"), "" + events);
        String said = events.stream()
            .filter(event -> event.contains("\"content\":\""))
            .map(event -> event.replaceAll(".*\"content\":\"([^\"]*)\".*", "$1"))
            .collect(Collectors.joining());
        expect(said.equals(TEXT), said);
    }

    static void expect(boolean holds, String otherwise) {
        if (!holds) {
            throw new AssertionError(otherwise);
        }
    }

    static class LineSubscriber implements java.util.concurrent.Flow.Subscriber<String> {
        final List<String> lines;

        LineSubscriber(List<String> lines) {
            this.lines = lines;
        }

        public void onSubscribe(java.util.concurrent.Flow.Subscription subscription) {
            subscription.request(Long.MAX_VALUE);
        }

        public void onNext(String line) {
            lines.add(line);
        }

        public void onError(Throwable error) {
            lines.add(error.toString());
        }

        public void onComplete() {}
    }
}
