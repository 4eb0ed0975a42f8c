
import api.models
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('api', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='apikey',
            name='allowed_models',
            field=models.JSONField(blank=True, default=list, help_text='names of models it may use, or beginnings followed by *; empty: all', validators=[api.models.check_models]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='allowed_nodes',
            field=models.JSONField(blank=True, default=list, help_text="only these nodes see its prompts: names, ids, or labels as key=value (a label is the node's own word, so name nodes where it matters); empty: all", validators=[api.models.check_nodes]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='concurrency',
            field=models.PositiveBigIntegerField(blank=True, default=0, help_text='requests at once; 0: no limit', validators=[django.core.validators.MaxValueValidator(1000000000000000)]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='previous_hash',
            field=models.CharField(blank=True, editable=False, max_length=64),
        ),
        migrations.AddField(
            model_name='apikey',
            name='previous_until',
            field=models.DateTimeField(blank=True, editable=False, help_text='after a rotation', null=True, verbose_name='old secret valid until'),
        ),
        migrations.AddField(
            model_name='apikey',
            name='priority',
            field=models.SmallIntegerField(blank=True, default=0, help_text='from -100 to 100; whoever waits with a higher one is served first', validators=[django.core.validators.MinValueValidator(-100), django.core.validators.MaxValueValidator(100)]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='requests_per_minute',
            field=models.PositiveBigIntegerField(blank=True, default=0, help_text='requests in any 60 seconds; 0: no limit', validators=[django.core.validators.MaxValueValidator(1000000000000000)]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='tokens_per_day',
            field=models.PositiveBigIntegerField(blank=True, default=0, help_text='tokens for each day (UTC); 0: no limit', validators=[django.core.validators.MaxValueValidator(1000000000000000)]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='tokens_per_minute',
            field=models.PositiveBigIntegerField(blank=True, default=0, help_text='tokens (prompt and answer) in any 60 seconds; 0: no limit', validators=[django.core.validators.MaxValueValidator(1000000000000000)]),
        ),
        migrations.AddField(
            model_name='apikey',
            name='tokens_per_month',
            field=models.PositiveBigIntegerField(blank=True, default=0, help_text='tokens for each month (UTC); 0: no limit', validators=[django.core.validators.MaxValueValidator(1000000000000000)]),
        ),
        migrations.CreateModel(
            name='Usage',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('model', models.CharField(max_length=200)),
                ('day', models.DateField()),
                ('requests', models.PositiveBigIntegerField(default=0)),
                ('errors', models.PositiveBigIntegerField(default=0, help_text='of these: failed or expired')),
                ('cancelled', models.PositiveBigIntegerField(default=0, help_text='of these: cancelled, or the caller left')),
                ('prompt_tokens', models.PositiveBigIntegerField(default=0)),
                ('completion_tokens', models.PositiveBigIntegerField(default=0)),
                ('estimated_tokens', models.PositiveBigIntegerField(default=0, help_text='of all tokens: counted by us, since the work ended before the engine said')),
                ('gpu_seconds', models.FloatField(default=0, help_text='time its attempts were on nodes', verbose_name='GPU-seconds')),
                ('key', models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.PROTECT, related_name='usage', to='api.apikey')),
            ],
            options={
                'verbose_name_plural': 'usage',
                'ordering': ['-day', 'key', 'model'],
                'indexes': [models.Index(fields=['day'], name='api_usage_day_4bf609_idx')],
                'constraints': [models.UniqueConstraint(fields=('key', 'model', 'day'), name='one_usage_row_per_day')],
            },
        ),
    ]
